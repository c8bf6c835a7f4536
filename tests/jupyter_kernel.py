"""aolab's Jupyter kernel, driven by the real jupyter_client: `python tests/jupyter_kernel.py PATH/TO/aolab`.

Each check is a function; all run in one kernel, in order. A failed assertion ends the program.
"""

import glob
import os
import statistics
import subprocess
import sys
import tempfile
import time

import nbformat
import zmq
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter


def outputs(client, message):
    """Everything that a cell shows until the kernel is idle again, and its reply."""
    shown = []
    while True:
        seen = client.get_iopub_msg(timeout=60)
        if seen["parent_header"].get("msg_id") != message:
            continue
        kind, content = seen["msg_type"], seen["content"]
        if kind == "status" and content["execution_state"] == "idle":
            break
        if kind not in ("status", "execute_input"):
            shown.append((kind, content))
    while True:
        reply = client.get_shell_msg(timeout=60)
        if reply["parent_header"]["msg_id"] == message:
            return shown, reply["content"]


def run(client, code, **options):
    return outputs(client, client.execute(code, **options))


def kinds(shown):
    return [kind for kind, _ in shown]


def results_are_rich(client):
    shown, reply = run(client, "base = load tiny\n$base | size\nplot bars --y bytes")
    assert reply["status"] == "ok", reply
    assert kinds(shown) == ["display_data", "display_data", "execute_result"], kinds(shown)
    assert set(shown[0][1]["data"]) == {"text/plain"}
    assert "<table" in shown[1][1]["data"]["text/html"]
    figure = shown[2][1]["data"]
    assert figure["image/svg+xml"].startswith("<svg"), figure
    # For whoever shows no SVG; base64 of a PNG's first bytes.
    assert figure["image/png"].startswith("iVBORw0KGgo"), figure
    assert all("text/plain" in content["data"] for _, content in shown)
    shown, _ = run(client, "$base")
    assert "<details" in shown[0][1]["data"]["text/html"], shown


def several_figures_stand_in_a_cell(client):
    shown, _ = run(client, "$base | size | plot --title one\n$base | size | plot --title two")
    figures = [content["data"]["image/svg+xml"] for _, content in shown]
    assert len(figures) == 2 and "one" in figures[0] and "two" in figures[1], kinds(shown)


def lines_are_timed(client):
    shown, _ = run(client, "%time size tiny")
    assert "stage" in shown[-1][1]["data"]["text/plain"], shown
    shown, _ = run(client, "%%time\nsize tiny")
    assert any(kind == "stream" and "ms" in content["text"] for kind, content in shown), shown


def a_cell_can_be_a_sweep(client):
    code = "%%sweep\nquantize int4-weight-only --group-size {32,64} |\n  eval perplexity --windows 1"
    shown, reply = run(client, code)
    assert reply["status"] == "ok", reply
    table = shown[-1][1]["data"]["text/plain"]
    assert "group-size" in table and "64" in table, table


def errors_fail_the_cell(client):
    shown, reply = run(client, "quantise tiny int8-weight-only")
    assert reply["status"] == "error" and "did you mean" in reply["evalue"], reply
    assert kinds(shown) == ["error"], shown
    # What was asked for behind it is not run: it waits already when the first fails.
    first = client.execute("$base | eval perplexity --windows 8\nload ./nowhere")
    second = client.execute("after = load tiny")
    assert outputs(client, first)[1]["status"] == "error"
    assert outputs(client, second)[1]["status"] == "aborted"
    assert run(client, "vars")[1]["status"] == "ok"
    _, reply = run(client, "$after")
    assert reply["status"] == "error", reply


def progress_comes_in_place(client):
    shown, reply = run(client, "$base | eval perplexity --windows 16 --context 256")
    assert reply["status"] == "ok", reply
    first = [c["transient"]["display_id"] for k, c in shown if k == "display_data" and c.get("transient")]
    again = [c["transient"]["display_id"] for k, c in shown if k == "update_display_data"]
    assert first and again and set(again) == set(first), kinds(shown)


def an_interrupt_keeps_the_session(manager, client):
    for send in (manager.interrupt_kernel, lambda: os.kill(manager.provisioner.pid, 2)):
        message = client.execute("$base | eval perplexity --context 256")
        time.sleep(1.0)
        # Others are answered while it runs.
        client.complete("qua", 3)
        assert client.get_shell_msg(timeout=5)["content"]["matches"] == ["quantize"]
        start = time.perf_counter()
        send()
        shown, reply = outputs(client, message)
        took = time.perf_counter() - start
        assert reply["status"] == "error" and reply["ename"] == "KeyboardInterrupt", reply
        assert took < 1.0, took
        print(f"  interrupted within {1e3 * took:.0f} ms")
        assert run(client, "$base | size")[1]["status"] == "ok"


def lines_are_completed_and_explained(client):
    def ask(message):
        while True:
            reply = client.get_shell_msg(timeout=10)
            if reply["parent_header"]["msg_id"] == message:
                return reply["content"]

    reply = ask(client.complete("echo 'ä'; $ba"))
    assert reply["matches"] == ["$base"] and reply["cursor_start"] == 10, reply
    assert ask(client.complete("quantize $base int4-w"))["matches"] == ["int4-weight-only"]
    help = ask(client.inspect("quantize $base int4-weight-only", 3))
    assert help["found"] and "Examples" in help["data"]["text/plain"], help
    assert "text/html" in ask(client.inspect("$base | size", 2))["data"]
    assert not ask(client.inspect("nonsense", 2))["found"]
    assert ask(client.is_complete("load tiny |"))["status"] == "incomplete"
    assert ask(client.is_complete("load tiny"))["status"] == "complete"
    history = ask(client.history(hist_access_type="tail", n=3))["history"]
    assert len(history) == 3 and history[-1][2] == "$base | size", history
    assert ask(client.comm_info())["comms"] == {}
    info = ask(client.kernel_info())
    assert info["language_info"]["file_extension"] == ".ao", info


def counts_only_what_is_kept(client):
    before = run(client, "echo a")[1]["execution_count"]
    run(client, "echo b", silent=True)
    assert run(client, "echo c")[1]["execution_count"] == before + 1


def wrong_signatures_are_not_obeyed(manager, client):
    info = manager.get_connection_info()
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(f"tcp://{info['ip']}:{info['shell_port']}")
    header = b'{"msg_id":"x","username":"x","session":"x","msg_type":"kernel_info_request","version":"5.3","date":"2026-01-01T00:00:00Z"}'
    for frames in (
        [b"<IDS|MSG>", b"0" * 64, header, b"{}", b"{}", b"{}"],
        [b"<IDS|MSG>", b"", header, b"{}", b"{}", b"{}"],
        [b"<IDS|MSG>"],
        [b"nonsense"],
        [b"<IDS|MSG>", b"zz", b"{", b"", b"", b"", b""],
    ):
        socket.send_multipart(frames)
    assert socket.poll(500) == 0, socket.recv_multipart()
    socket.close()
    assert run(client, "echo still here")[1]["status"] == "ok"


def cells_cost_little(client):
    times = []
    for _ in range(50):
        start = time.perf_counter()
        run(client, "echo a")
        times.append(1e3 * (time.perf_counter() - start))
    print(f"  a cell takes {statistics.median(times):.2f} ms in the middle, {max(times):.2f} at most")
    return statistics.median(times)


def notebooks_run_and_fail_as_they_should(name):
    cells = [nbformat.v4.new_code_cell(code) for code in ("load tiny", "size | plot", "echo done")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name=name, timeout=60, iopub_timeout=60).execute()
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3]
    assert "image/svg+xml" in notebook.cells[1].outputs[0]["data"]
    wrong = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("nonsense")])
    try:
        NotebookClient(wrong, kernel_name=name, timeout=60).execute()
    except CellExecutionError as error:
        assert "no command is called" in str(error)
    else:
        raise AssertionError("a wrong line must fail the notebook")


def our_notebooks_run(name):
    """Those of ours whose cells are aolab's lines, from the first cell to the last, and as HTML."""
    found = 0
    for path in sorted(glob.glob(os.path.join(os.path.dirname(__file__), "..", "notebooks", "*.ipynb"))):
        notebook = nbformat.read(path, as_version=4)
        if notebook.metadata.kernelspec.name != "aolab":
            continue
        found += 1
        NotebookClient(notebook, kernel_name=name, timeout=300, iopub_timeout=60).execute()
        html, _ = HTMLExporter().from_notebook_node(notebook)
        assert "image/svg+xml" in html and "aolab-model" in html, path
        print(f"  {os.path.basename(path)} runs, and as HTML has {len(html) // 1024} KiB")
    assert found, "no notebook of command cells"


def main(aolab):
    name = "aolab-test"
    folder = os.environ["JUPYTER_DATA_DIR"]
    subprocess.run([aolab, "jupyter", "install", "--name", name], check=True)
    manager = KernelManager(kernel_name=name)
    start = time.perf_counter()
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    print(f"  ready in {time.perf_counter() - start:.2f} s")
    results_are_rich(client)
    several_figures_stand_in_a_cell(client)
    lines_are_timed(client)
    a_cell_can_be_a_sweep(client)
    errors_fail_the_cell(client)
    progress_comes_in_place(client)
    an_interrupt_keeps_the_session(manager, client)
    lines_are_completed_and_explained(client)
    counts_only_what_is_kept(client)
    wrong_signatures_are_not_obeyed(manager, client)
    assert cells_cost_little(client) < 50, "even a busy machine answers an empty cell within 50 ms"
    client.stop_channels()
    manager.shutdown_kernel()
    notebooks_run_and_fail_as_they_should(name)
    our_notebooks_run(name)
    subprocess.run([aolab, "jupyter", "uninstall", "--name", name], check=True)
    assert not os.path.exists(os.path.join(folder, "kernels", name))
    print("the kernel does what a Jupyter client asks")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["JUPYTER_DATA_DIR"] = os.path.join(home, "data")
        os.environ["XDG_DATA_HOME"] = home
        os.environ["IPYTHONDIR"] = os.path.join(home, "ipython")
        main(os.path.abspath(sys.argv[1]))
