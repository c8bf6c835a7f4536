#!/usr/bin/env python3
"""A training step of the built-in model's shape in PyTorch's eager mode: the baseline of `aolab train`.

    python benches/against_pytorch_training.py [--threads 2] [--batch 8] [--sequence 256]

Forward, backward, gradient norm and AdamW in f32 on random tokens; the median of five steps after two. It needs
PyTorch; nothing else of the project does.
"""
import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, d, heads, kv_heads, ffn):
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, d // heads
        kv = kv_heads * self.size
        linear = lambda k, n: nn.Linear(k, n, bias=False)
        self.q, self.k, self.v, self.o = linear(d, d), linear(d, kv), linear(d, kv), linear(d, d)
        self.gate, self.up, self.down = linear(d, ffn), linear(d, ffn), linear(ffn, d)
        self.norm1, self.norm2 = nn.RMSNorm(d, eps=1e-5), nn.RMSNorm(d, eps=1e-5)

    def rotate(self, x, cos, sin):
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        n = self.norm1(x)
        split = lambda y, h: y.view(b, t, h, self.size).transpose(1, 2)
        q, k = split(self.q(n), self.heads), split(self.k(n), self.kv_heads)
        v = split(self.v(n), self.kv_heads)
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        n = self.norm2(x)
        return x + self.down(F.silu(self.gate(n)) * self.up(n))


class Llama(nn.Module):
    def __init__(self, vocab=4096, d=256, layers=6, heads=8, kv_heads=4, ffn=768):
        super().__init__()
        self.embed = nn.Embedding(vocab, d)
        self.blocks = nn.ModuleList(Block(d, heads, kv_heads, ffn) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(d, eps=1e-5), nn.Linear(d, vocab, bias=False)
        self.size = d // heads

    def forward(self, ids):
        angle = torch.arange(ids.shape[1])[:, None] * 10000.0 ** (-torch.arange(0, self.size, 2) / self.size)
        cos, sin = angle.cos(), angle.sin()
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--sequence", type=int, default=256)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = Llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, 4096, (a.batch, a.sequence + 1))
    times = []
    for _ in range(7):
        start = time.perf_counter()
        logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.reshape(-1, 4096), ids[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        times.append(time.perf_counter() - start)
    step = statistics.median(times[2:])
    tokens = a.batch * a.sequence
    print(f"PyTorch {torch.__version__}, f32, {a.threads} threads, {a.batch} × {a.sequence}: "
          f"{1e3 * step:.0f} ms a step, {tokens / step:.0f} tokens/s (loss {loss.item():.3f})")


if __name__ == "__main__":
    main()
