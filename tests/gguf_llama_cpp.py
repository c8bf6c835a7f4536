#!/usr/bin/env python3
"""Files that `save NAME.gguf` writes run in llama.cpp, and predict as they do here.  usage: gguf_llama_cpp.py AOLAB  (pip install
llama-cpp-python numpy). Perplexity of two chunks of 512 tokens of the built-in text, counted as llama.cpp counts it, within 1 %:
llama.cpp rounds activations to 8 bits and its cache to f16."""
import json, pathlib, subprocess, sys, tempfile

import llama_cpp
import numpy as np

CONTEXT, CHUNKS = 512, 2
text = pathlib.Path(__file__).parent.parent.joinpath("src/model/tiny/eval.txt").read_bytes()


def perplexity(path):
    llm = llama_cpp.Llama(model_path=path, n_ctx=CONTEXT, n_batch=CONTEXT, n_threads=2, logits_all=True, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(llm.model)
    add_bos = bool(llama_cpp.llama_vocab_get_add_bos(vocab))
    ids, nll = llm.tokenize(text, add_bos=add_bos, special=False), []
    for i in range(CHUNKS):
        chunk = ids[i * CONTEXT:(i + 1) * CONTEXT]
        if add_bos:
            chunk[0] = llama_cpp.llama_vocab_bos(vocab)
        llm.reset()
        llm.eval(chunk)
        logits = np.array(llm.scores[:CONTEXT], dtype=np.float64)
        for j in range(CONTEXT // 2, CONTEXT - 1):
            top = logits[j].max()
            nll.append(float(top + np.log(np.exp(logits[j] - top).sum()) - logits[j][chunk[j + 1]]))
    return float(np.exp(np.mean(nll)))


worst = 0.0
with tempfile.TemporaryDirectory() as folder:
    for kind in ["as it came", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K"]:
        path = f"{folder}/model.gguf"
        pathlib.Path(path).unlink(missing_ok=True)
        make = "load tiny" if kind == "as it came" else f"quantize tiny gguf --type {kind}"
        ours = f"eval perplexity --convention llamacpp --context {CONTEXT} --windows {CHUNKS}"
        run = [sys.argv[1], "--json", "-c", f"{make} | save {path}; load {path} | {ours}"]
        shown = subprocess.run(run, check=True, capture_output=True, text=True).stdout
        documents, decoder, at = [], json.JSONDecoder(), 0
        while at < len(shown.rstrip()):
            document, at = decoder.raw_decode(shown, at)
            documents.append(document)
            while at < len(shown) and shown[at].isspace():
                at += 1
        got, wanted = documents[-1]["rows"][0]["perplexity"], perplexity(path)
        worst = max(worst, abs(got / wanted - 1))
        print(f"{kind}: aolab {got:.3f}, llama.cpp {wanted:.3f} ({100 * (got / wanted - 1):+.2f} %)", flush=True)
print(f"largest difference {100 * worst:.2f} %")
sys.exit(worst > 0.01)
