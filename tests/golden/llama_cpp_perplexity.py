#!/usr/bin/env python3
"""Makes tests/golden/smollm2.json: llama.cpp's perplexity, as its own tool counts it.

    pip install llama-cpp-python==0.3.36 numpy
    python llama_cpp_perplexity.py SmolLM2-135M-Instruct.Q4_1.gguf ../../src/model/tiny/eval.txt > smollm2.json

Chunks of 512 tokens of the text (with BOS in front if the model adds one, and then as the first token of each
chunk); targets 257..511 of each chunk count; log-softmax and sums in float64.
"""

import hashlib
import json
import sys

import llama_cpp
import numpy as np

CONTEXT, CHUNKS = 512, 8

path, text_path = sys.argv[1:3]
llm = llama_cpp.Llama(model_path=path, n_ctx=CONTEXT, n_batch=CONTEXT, n_threads=2, logits_all=True, verbose=False)
vocab = llama_cpp.llama_model_get_vocab(llm.model)
add_bos = bool(llama_cpp.llama_vocab_get_add_bos(vocab))
bos = llama_cpp.llama_vocab_bos(vocab)
text = open(text_path, "rb").read()
ids = llm.tokenize(text, add_bos=add_bos, special=False)
nll = []
for i in range(CHUNKS):
    chunk = ids[i * CONTEXT:(i + 1) * CONTEXT]
    if add_bos:
        chunk[0] = bos
    llm.reset()
    llm.eval(chunk)
    logits = np.array(llm.scores[:CONTEXT], dtype=np.float64)
    for j in range(CONTEXT // 2, CONTEXT - 1):
        row = logits[j]
        top = row.max()
        nll.append(float(top + np.log(np.exp(row - top).sum()) - row[chunk[j + 1]]))
print(json.dumps({
    "llama_cpp_python": llama_cpp.__version__, "sha256": hashlib.sha256(open(path, "rb").read()).hexdigest(),
    "text_sha256": hashlib.sha256(text).hexdigest(), "convention": "llamacpp", "context": CONTEXT, "chunks": CHUNKS,
    "add_bos": add_bos, "tokens_without_bos": len(ids) - int(add_bos), "first_ids": ids[:16],
    "predicted_tokens": len(nll), "perplexity": float(np.exp(np.mean(nll)))}, indent=1))
