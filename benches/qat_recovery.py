#!/usr/bin/env python3
"""What quantization-aware training brings back of what rounding cost, on the built-in model and text.

    cargo build --release
    python3 benches/qat_recovery.py [FORMAT …] [--program target/release/aolab] [--seeds 0 1 2] [--steps 100]

For each format and seed: the held-out perplexity of the model as it is, rounded (PTQ), and after training with the
rounding in the loop, all on the same windows; recovered = (PTQ - QAT) / (PTQ - before), in log perplexity. Beside
them the model trained as long with the same text and no rounding: what plain training does to the same figure. Every run is
kept in `--keep` once it is done, so that a program that was stopped goes on where it was.
"""
import argparse
import json
import math
import pathlib
import re
import shlex
import statistics
import subprocess
import time

INT3 = "--qat int3 --group-size 32"
FORMATS = {
    "int3 g32": INT3,
    "int4 g32": "--qat int4-weight-only --group-size 32",
    "int2 g32": "--qat int2 --group-size 32",
    "8da4w g32": "--qat 8da4w --group-size 32",
    "int3 g32, LoRA": INT3 + " --lora-rank 16 --lora-alpha 32",
    "int3 g32, learned ranges": INT3 + " --range-learning",
    "parq 3 bits a row": "--parq 3",
}
# Adapters begin at zero: they take a larger rate.
RATES = {"int3 g32, LoRA": "5e-4"}
# PARQ has no rounded model before the first step: its PTQ is that of one row a scale.
ROUNDED = {"parq 3 bits a row": "--qat int3"}


def perplexities(asked, key, options):
    """Before and after training with `options`: from the file that an earlier run left, or from a new run."""
    file = asked.keep / (re.sub(r"[^a-z0-9.]+", "-", key.lower()) + ".json")
    line = f"load tiny | train {options}"
    if file.exists():
        kept = json.loads(file.read_text())
        if kept["line"] == line:
            return kept["before"], kept["after"], kept["seconds"]
    start = time.time()
    command = shlex.split(asked.launcher) + [asked.program, "--no-store", "-c", line]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"held-out perplexity ([0-9.]+) → ([0-9.]+)", done.stdout + done.stderr)
    if done.returncode or not found:
        raise SystemExit(f"{line}: {done.stderr or done.stdout}")
    before, after, seconds = float(found[1]), float(found[2]), time.time() - start
    file.write_text(json.dumps({"line": line, "before": before, "after": after, "seconds": seconds}))
    return before, after, seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default="target/release/aolab")
    parser.add_argument("--launcher", default="", help="put before the program")
    parser.add_argument("--keep", type=pathlib.Path, default=pathlib.Path("qat_recovery"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--lr", default="5e-5")
    parser.add_argument("--distill", default="1")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("formats", nargs="*", default=list(FORMATS))
    asked = parser.parse_args()
    asked.keep.mkdir(parents=True, exist_ok=True)
    held_out = f"--sequence {asked.sequence} --eval-windows {asked.windows}"
    common = (
        f"--batch {asked.batch} --warmup 5 --min-lr 0 --beta2 0.95 --weight-decay 0 --eval-every {asked.steps} "
        f"--steps {asked.steps} {held_out}"
    )
    once = f"--steps 1 --lr 1e-12 --batch 1 --eval-every 1 {held_out}"
    before, _, _ = perplexities(asked, f"as-it-is-{asked.sequence}-{asked.windows}", once)
    print(f"as it is: {before:.3f}; {asked.steps} steps of {asked.batch} x {asked.sequence} tokens, "
          f"{asked.windows} windows held out, distill {asked.distill}", flush=True)
    rows = []
    for name in asked.formats:
        afters, shares, times = [], [], []
        rate = RATES.get(name, asked.lr)
        for seed in asked.seeds:
            options = f"{FORMATS[name]} --distill {asked.distill} --lr {rate} --seed {seed} {common}"
            ptq, qat, took = perplexities(asked, f"{name}-{asked.steps}-{asked.batch}-{seed}", options)
            if name in ROUNDED:
                ptq, _, _ = perplexities(asked, f"{name}-rounded", f"{ROUNDED[name]} {once}")
            lost = math.log(ptq) - math.log(before)
            afters.append(qat)
            times.append(took)
            shares.append(100 * (math.log(ptq) - math.log(qat)) / lost)
            print(f"{name}: seed {seed}: PTQ {ptq:.3f}, QAT {qat:.3f}, {shares[-1]:.0f} % back ({took:.0f} s)", flush=True)
        spread = statistics.stdev(shares) if len(shares) > 1 else 0.0
        after = ", ".join(f"{value:.3f}" for value in afters)
        rows.append(f"| {name} | {rate} | {ptq:.3f} | {after} | {statistics.mean(shares):.0f} ± {spread:.0f} % | {max(times):.0f} s |")
    print("| format | rate | rounded (PTQ) | after training, each seed | back | longest |\n|---|---|---|---|---|---|")
    print("\n".join(rows))
    plain = f"--lr {asked.lr} --seed {asked.seeds[0]} {common}"
    _, after, _ = perplexities(asked, f"plain-{asked.steps}-{asked.batch}", plain)
    print(f"no rounding, no teacher, trained as long: {before:.3f} → {after:.3f}")


main()
