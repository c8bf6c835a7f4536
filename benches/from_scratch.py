#!/usr/bin/env python3
"""Training from random weights with each kind of linear layer: how far its final loss is from bf16's.

    cargo build --release
    python3 benches/from_scratch.py [--program target/release/aolab] [--seeds 0 1 2] [--steps 300] [KIND …]

Same weights, same data, same schedule for one seed; a final loss is the mean of the last 20 steps. Writes the curves
of the first seed to `from_scratch.svg`.
"""
import argparse
import json
import statistics
import subprocess

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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default="target/release/aolab")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    asked = parser.parse_args()
    common = f"--from-scratch --steps {asked.steps} --batch {asked.batch} --sequence {asked.sequence} --lr 2e-3 --warmup 20"
    gaps = {name: [] for name in asked.kinds}
    for seed in asked.seeds:
        lines = [f"train tiny {common} --seed {seed} {KINDS[name]}" for name in asked.kinds]
        if seed == asked.seeds[0]:
            lines += ['$losses | plot lines --x step --y loss --by "linear layers" | save from_scratch.svg']
        lines += ["$losses"]
        done = subprocess.run(
            [asked.program, "--json", "-c", "load tiny; " + "; ".join(lines)], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        tables = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        rows = next(table for table in reversed(tables) if "rows" in table)["rows"]
        losses = [row[1] if isinstance(row, list) else row["loss"] for row in rows]
        final = {
            name: statistics.mean(losses[i * asked.steps :][asked.steps - 20 : asked.steps])
            for i, name in enumerate(asked.kinds)
        }
        for name in asked.kinds:
            gaps[name].append(100 * (final[name] / final["bf16"] - 1))
            print(f"seed {seed}: {name}: {final[name]:.4f}, {gaps[name][-1]:+.2f} % of bf16's", flush=True)
    for name, gap in gaps.items():
        print(f"{name}: {statistics.mean(gap):+.2f} % (worst {max(gap, key=abs):+.2f} %)")


main()
