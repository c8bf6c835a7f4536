#!/usr/bin/env python3
"""Decode and prefill of one GGUF model, llama.cpp and aolab in turn on the same machine.

    pip install llama-cpp-python==0.3.36
    python benches/against_llama_cpp.py MODEL.gguf [--threads 2] [--rounds 3]

Both read the same 512 tokens, then write one token at a time behind them. Medians over all rounds. llama.cpp keeps
keys and values in f16, its default; aolab decodes with them in f32, its default, and in f16.
"""

import argparse
import json
import os
import statistics
import subprocess
import time


def llama_cpp(path, threads, prompt, tokens):
    from llama_cpp import Llama

    llm = Llama(model_path=path, n_ctx=prompt + tokens, n_threads=threads, n_threads_batch=threads,
                n_batch=512, n_ubatch=512, verbose=False)
    ids = [(7919 * i) % 40000 + 100 for i in range(prompt + tokens)]
    prefill = []
    for _ in range(3):
        llm.reset()
        start = time.perf_counter()
        llm.eval(ids[:prompt])
        prefill.append(prompt / (time.perf_counter() - start))
    decode = []
    for token in ids[prompt:]:
        start = time.perf_counter()
        llm.eval([token])
        decode.append(time.perf_counter() - start)
    speed = 1 / statistics.median(decode)
    return speed, speed, statistics.median(prefill)


def aolab(binary, path, threads, prompt, tokens):
    def bench(*words):
        command = [binary, "--json", "--threads", str(threads), "-c", " ".join(("load", f"'{path}'", "|") + words)]
        table = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return table["rows"][0]["speed"]

    decode = ("bench", "decode", "--context", str(prompt), "--tokens", str(tokens))
    return (bench(*decode), bench(*decode, "--kv-cache", "f16"), bench("bench", "prefill", "--tokens", str(prompt)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--aolab", default=os.path.join(os.environ.get("CARGO_TARGET_DIR", "target"), "release/aolab"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    theirs, ours = [], []
    for _ in range(args.rounds):
        theirs.append(llama_cpp(args.model, args.threads, args.prompt, args.tokens))
        ours.append(aolab(args.aolab, args.model, args.threads, args.prompt, args.tokens))
    for i, what in enumerate([f"decode behind {args.prompt}", "with an f16 cache", f"prefill of {args.prompt}"]):
        a, b = (statistics.median(run[i] for run in runs) for runs in (theirs, ours))
        print(f"{what:20}  llama.cpp {a:8.1f} tok/s   aolab {b:8.1f} tok/s   ratio {b / a:.2f}")


if __name__ == "__main__":
    main()
