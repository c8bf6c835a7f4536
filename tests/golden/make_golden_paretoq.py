#!/usr/bin/env python3
"""Golden vectors of ParetoQ's quantizers: python make_golden_paretoq.py (torch, safetensors and torchao 0.17 or 0.18)."""
import math

import torch
from safetensors.torch import save_file
from torchao.prototype.paretoq.models.utils_quant import LsqBinaryTernaryExtension, StretchedElasticQuant

torch.manual_seed(20261)
w, dy = torch.randn(8, 48) * 0.1, torch.randn(8, 48)
w[0, :4] = torch.tensor([0.0, 1.0, -1.0, 0.05])
w[3] = 0.0
all = {"w": w, "dy": dy}
for bits in (0, 1, 2, 3, 4):
    largest = w.abs().amax(1, keepdim=True)
    # Half of what training begins with, so that numbers lie beyond both ends of the range.
    begin = {1: w.abs().mean(1, keepdim=True), 0: largest, 2: largest}.get(bits, largest / max(2 ** (bits - 1) - 1, 1))
    latent, alpha = w.clone().requires_grad_(), (begin * 0.5).requires_grad_()
    quant = StretchedElasticQuant if bits in (0, 2) else LsqBinaryTernaryExtension
    seen = quant.apply(latent, alpha, bits, False)
    seen.backward(dy)
    all |= {f"b{bits}.begin": begin, f"b{bits}.alpha": alpha.detach(), f"b{bits}.seen": seen.detach()}
    all |= {f"b{bits}.dw": latent.grad, f"b{bits}.dalpha": alpha.grad}
save_file({name: tensor.contiguous() for name, tensor in all.items()}, "paretoq.safetensors")
