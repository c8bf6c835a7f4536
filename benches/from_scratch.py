#!/usr/bin/env python3
"""Training from random weights with each kind of linear layer: how far its final loss is from bf16's.

    cargo build --release
    python3 benches/from_scratch.py [KIND …] [--program target/release/aolab] [--seeds 0 1 2] [--steps 300]

Same weights, same data, same schedule for one seed; a final loss is the mean of the last 20 steps. Every run is kept in
`--keep` once it is done, so that a program that was stopped goes on where it was; `--batch` and `--sequence` cut the whole
to size. `from_scratch.svg` there has the curves of the first seed, each point the mean of 10 steps.
"""
import argparse
import json
import pathlib
import shlex
import statistics
import subprocess
import time

KINDS = {
    "bf16": "--precision bf16",
    "f32": "",
    "fp8 tensorwise": "--linear float8-tensorwise",
    "fp8 rowwise": "--linear float8-rowwise",
    "int8 mixed": "--linear int8-mixed-precision",
    "mxfp8": "--linear mxfp8",
    "bitnet": "--linear bitnet",
    "nvfp4": "--linear nvfp4",
}
COLOURS = ["#222222", "#999999", "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7"]


def train(asked, name, seed):
    """The losses of one run, from the file that an earlier one left or from a new run."""
    file = asked.keep / f"{name.replace(' ', '-')}-{asked.steps}x{asked.batch}x{asked.sequence}-{seed}.json"
    if not file.exists():
        line = (
            f"load tiny | train --from-scratch --steps {asked.steps} --batch {asked.batch} --sequence {asked.sequence} "
            f"--lr {asked.lr} --warmup 20 --seed {seed} {KINDS[name]}; $losses"
        )
        start = time.time()
        command = shlex.split(asked.launcher) + [asked.program, "--no-store", "--json", "-c", line]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{line}: {done.stderr}")
        tables = [json.loads(text) for text in done.stdout.splitlines() if text.startswith("{")]
        rows = next(table for table in reversed(tables) if "rows" in table)["rows"]
        losses = [row[1] if isinstance(row, list) else row["loss"] for row in rows]
        if len(losses) != asked.steps:
            raise SystemExit(f"{line}: {len(losses)} losses")
        file.write_text(json.dumps({"losses": losses, "seconds": time.time() - start}))
    return json.loads(file.read_text())["losses"]


def svg(curves, steps):
    """One line a kind; the losses of 10 steps are one point."""
    points = {name: [statistics.mean(c[i : i + 10]) for i in range(0, steps - 9, 10)] for name, c in curves.items()}
    low, high = min(map(min, points.values())), max(map(max, points.values()))
    x = lambda i: 50 + 560 * i / max(1, steps // 10 - 1)
    y = lambda loss: 20 + 320 * (high - loss) / (high - low)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 380" font-family="sans-serif" font-size="12">']
    out.append('<rect width="760" height="380" fill="white"/>')
    for i in range(5):
        loss = low + (high - low) * i / 4
        out.append(f'<line x1="50" x2="610" y1="{y(loss):.1f}" y2="{y(loss):.1f}" stroke="#dddddd"/>')
        out.append(f'<text x="44" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
    for (name, losses), colour in zip(points.items(), COLOURS):
        path = " ".join(f"{x(i):.1f},{y(loss):.1f}" for i, loss in enumerate(losses))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    for i, (name, colour) in enumerate(zip(points, COLOURS)):
        out.append(f'<text x="622" y="{30 + 18 * i}" fill="{colour}">{name}</text>')
    out.append(f'<text x="330" y="370" text-anchor="middle">step 1 to {steps}; loss in nats a token</text></svg>')
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default="target/release/aolab")
    parser.add_argument("--launcher", default="", help="put before the program")
    parser.add_argument("--keep", type=pathlib.Path, default=pathlib.Path("from_scratch"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--lr", default="2e-3")
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    asked = parser.parse_args()
    asked.keep.mkdir(parents=True, exist_ok=True)
    kinds = ["bf16"] + [name for name in asked.kinds if name != "bf16"]
    gaps, finals = {name: [] for name in kinds}, {name: [] for name in kinds}
    for seed in asked.seeds:
        curves = {name: train(asked, name, seed) for name in kinds}
        if seed == asked.seeds[0]:
            (asked.keep / "from_scratch.svg").write_text(svg(curves, asked.steps))
        for name, curve in curves.items():
            finals[name].append(statistics.mean(curve[-20:]))
            gaps[name].append(100 * (finals[name][-1] / finals["bf16"][-1] - 1))
            print(f"seed {seed}: {name}: {finals[name][-1]:.4f}, {gaps[name][-1]:+.2f} % of bf16's", flush=True)
    print(f"{asked.steps} steps of {asked.batch} x {asked.sequence} tokens, peak rate {asked.lr}, seeds {asked.seeds}")
    print("| linear layers | final loss, each seed | from bf16's, each seed | worst |\n|---|---|---|---|")
    for name in kinds:
        loss, gap = (", ".join(f.format(v) for v in s[name]) for f, s in (("{:.3f}", finals), ("{:+.2f} %", gaps)))
        print(f"| {name} | {loss} | {gap} | {max(gaps[name], key=abs):+.2f} % |")


main()
