"""Notebooks in the real evcxr kernel: `python tests/notebooks_evcxr.py FOLDER NOTEBOOK.ipynb …`.

FOLDER keeps what is built from one run to the next, and gets the executed copies as HTML. A panic fails its cell. Says how
long the first cell took, and the cells of one line after it.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter

ONE_LINE = "println!(\"{}\", 1 + 1);"


def prepare(folder):
    # evcxr would take the newest of every crate.
    lock = os.path.join(folder, "build", "Cargo.lock")
    libraries = subprocess.run(["rustc", "--print", "target-libdir"], check=True, capture_output=True, text=True)
    config = os.path.join(folder, "config")
    build = os.path.join(folder, "build")
    os.makedirs(config, exist_ok=True)
    os.makedirs(build, exist_ok=True)
    if not os.path.exists(lock):
        shutil.copy(os.path.join(os.path.dirname(__file__), "..", "Cargo.lock"), lock)
    with open(os.path.join(config, "evcxr.toml"), "w") as file:
        file.write("[evcxr]\npreserve_vars_on_panic = false\n")
    # The library's own plumbing need not be fast here; its kernels stay as evcxr builds them.
    os.makedirs(os.path.join(folder, ".cargo"), exist_ok=True)
    with open(os.path.join(folder, ".cargo", "config.toml"), "w") as file:
        file.write("[profile.dev.package.aolab]\nopt-level = 1\n")
    os.environ.update(
        EVCXR_CONFIG_DIR=config,
        EVCXR_TMPDIR=build,
        # The standard library of a child that does not lie where its rpath says.
        LD_LIBRARY_PATH=libraries.stdout.strip(),
        # evcxr asks rustup for rust-src by itself; nothing here needs it.
        RUSTUP_DIST_SERVER="http://127.0.0.1:9",
    )
    os.environ.pop("CARGO_TARGET_DIR", None)


def run(path, folder):
    notebook = nbformat.read(path, as_version=4)
    for _ in range(5):
        notebook.cells.append(nbformat.v4.new_code_cell(ONE_LINE))
    client = NotebookClient(
        notebook, kernel_name="rust", timeout=3600, startup_timeout=120, iopub_timeout=120,
        resources={"metadata": {"path": os.path.dirname(os.path.abspath(path))}})
    times = []
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "code":
                start = time.perf_counter()
                client.execute_cell(cell, index)
                times.append(time.perf_counter() - start)
                words = "".join(o.get("text", "") for o in cell.outputs if o.get("name") == "stderr")
                assert "panicked at" not in words, words
    shown = {mime for cell in notebook.cells for o in cell.get("outputs", []) for mime in o.get("data", {})}
    assert {"text/html", "text/plain"} <= shown, shown
    name = os.path.splitext(os.path.basename(path))[0]
    html, _ = HTMLExporter().from_notebook_node(notebook)
    with open(os.path.join(folder, name + ".html"), "w") as file:
        file.write(html)
    lines = times[-5:]
    print(f"{name}: first cell {times[0]:.1f} s, {len(times) - 5} cells in {sum(times[:-5]):.1f} s; "
          f"a cell of one line {statistics.median(lines):.2f} s in the middle, {max(lines):.2f} s at most", flush=True)


if __name__ == "__main__":
    prepare(sys.argv[1])
    for path in sys.argv[2:]:
        run(path, sys.argv[1])
