#!/usr/bin/env python3
"""What quantization-aware training brings back of what rounding cost, on the built-in model and text.

    cargo build --release
    python3 benches/qat_recovery.py [--program target/release/aolab] [--seeds 0 1 2] [--steps 100] [FORMAT …]

For each format and seed: the held-out perplexity of the model as it is, rounded (PTQ), and after training with the
rounding in the loop, all on the same windows; recovered = (PTQ - QAT) / (PTQ - before), in log perplexity. Beside
them the model trained as long with the same text and no rounding: what plain training does to the same figure.
"""
import argparse
import math
import re
import statistics
import subprocess
import time

FORMATS = {
    "int4 g32": "--qat int4-weight-only --group-size 32",
    "int3 g32": "--qat int3 --group-size 32",
    "int2 g32": "--qat int2 --group-size 32",
    "8da4w g32": "--qat 8da4w --group-size 32",
}


def perplexities(program, options):
    line = f"load tiny | train {options}"
    start = time.time()
    done = subprocess.run([program, "-c", line], capture_output=True, text=True)
    found = re.search(r"held-out perplexity ([0-9.]+) → ([0-9.]+)", done.stdout + done.stderr)
    if done.returncode or not found:
        raise SystemExit(f"{line}: {done.stderr or done.stdout}")
    return float(found[1]), float(found[2]), time.time() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default="target/release/aolab")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", default="5e-5")
    parser.add_argument("--distill", default="1")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("formats", nargs="*", default=list(FORMATS))
    asked = parser.parse_args()
    common = (
        f"--batch {asked.batch} --sequence 256 --lr {asked.lr} --warmup 5 --min-lr 0 --beta2 0.95 --weight-decay 0 "
        f"--eval-every {asked.steps} --eval-windows {asked.windows}"
    )
    before, _, _ = perplexities(
        asked.program, f"--steps 1 --lr 1e-12 --batch 1 --sequence 256 --eval-every 1 --eval-windows {asked.windows}"
    )
    print(f"{asked.steps} steps of {asked.batch} x 256 tokens, lr {asked.lr}, distill {asked.distill}; {common}")
    _, plain, took = perplexities(asked.program, f"--steps {asked.steps} --seed {asked.seeds[0]} {common}")
    print(f"no rounding: {before:.3f} before, {plain:.3f} after plain training ({took:.0f} s)")
    for name in asked.formats:
        shares = []
        for seed in asked.seeds:
            options = f"{FORMATS[name]} --distill {asked.distill} --steps {asked.steps} --seed {seed} {common}"
            ptq, qat, took = perplexities(asked.program, options)
            lost = math.log(ptq) - math.log(before)
            shares.append(100 * (math.log(ptq) - math.log(qat)) / lost)
            print(f"{name}: seed {seed}: PTQ {ptq:.3f}, QAT {qat:.3f}, {shares[-1]:.0f} % back ({took:.0f} s)", flush=True)
        spread = statistics.stdev(shares) if len(shares) > 1 else 0.0
        print(f"{name}: {statistics.mean(shares):.0f} ± {spread:.0f} % back")


main()
