#!/usr/bin/env python3
"""Golden vectors from torchao (CPU, x86-64) for what the other families leave out: every mapping in f16 and bf16, scales of
another dtype than the input, bf16 results, NaN and infinity, float8 scales.  usage: make_golden_dtypes.py OUT.safetensors SEED"""
import sys, warnings; warnings.filterwarnings("ignore")
import torch; torch.set_num_threads(1)
from torchao.quantization.quant_primitives import *
from torchao.quantization import quant_primitives as QP
from torchao.quantization.quant_primitives import MappingType as MT
from safetensors.torch import save_file
torch.manual_seed(int(sys.argv[2])); t = {}
x = torch.randn(12, 64) * torch.logspace(-3, 2, 12)[:, None]
x[0] = 0; x[1] = x[1].abs() + 1; x[2] = -x[2].abs() - 1; x[3] = 0.3; x[4, 5] = 300; x[5] = (torch.arange(64) - 32) * 0.5
x[6, 7] = float("nan"); x[7, 8] = float("inf"); x[8, 9] = float("inf"); x[8, 10] = -float("inf"); x[9] = 2.0 ** -20
for dn, dt in (("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)):
    xd = t[f"{dn}.x"] = x.to(dt)
    for mn, mt in (("sym", MT.SYMMETRIC), ("symnc", MT.SYMMETRIC_NO_CLIPPING_ERR), ("asym", MT.ASYMMETRIC)):
        for bits in (3, 4, 8):
            lo, hi = -2 ** (bits - 1), 2 ** (bits - 1) - 1
            for sn, sd, zd in (("own", None, torch.int32), ("f32", torch.float32, torch.int8), ("flt", None, torch.float32)):
                p = f"{dn}.{mn}.b{bits}.{sn}"
                s, z = choose_qparams_affine(xd, mt, (1, 32), torch.int8, lo, hi, scale_dtype=sd, zero_point_dtype=zd)
                q = quantize_affine(xd, (1, 32), s, z, torch.int8, lo, hi)
                t[p + ".scale"], t[p + ".zp"], t[p + ".q"] = s, z, q
                t[p + ".dq"] = dequantize_affine(q, (1, 32), s, z, torch.int8, lo, hi, output_dtype=dt)
    for en, eps in (("", None), ("eps", 1e-6)):
        s, z = QP._choose_qparams_affine_tinygemm(xd, MT.ASYMMETRIC, (1, 32), torch.int32, 0, 15, eps)
        q = QP._quantize_affine_tinygemm(xd, (1, 32), s, z, torch.int32, 0, 15); p = f"{dn}.tg{en}"
        t[p + ".scale"], t[p + ".zp"], t[p + ".q"] = s, z, q
        t[p + ".dq"] = QP._dequantize_affine_tinygemm(q, (1, 32), s, z, torch.int32, 0, 15, output_dtype=dt)
        s, z = QP._choose_qparams_affine_dont_preserve_zero(xd, MT.ASYMMETRIC, (1, 32), torch.int32, 0, 15, eps); p = f"{dn}.dpz{en}"
        t[p + ".scale"], t[p + ".zp"], t[p + ".q"] = s, z, quantize_affine(xd, (1, 32), s, z, torch.int32, 0, 15)
    for fn, f8 in (("e4m3fn", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2), ("e4m3fnuz", torch.float8_e4m3fnuz)):
        t[f"{dn}.{fn}"] = QP._choose_scale_float8(xd, [1, 64], f8)
        t[f"{dn}.{fn}.bounds"] = QP._choose_scale_float8(xd, [1, 64], f8, hp_value_lb=0.01, hp_value_ub=100.0)
        t[f"{dn}.{fn}.e8m0"] = QP._choose_scale_float8(xd, [1, 64], f8, scale_dtype=torch.float8_e8m0fnu)
save_file({k: v.contiguous() for k, v in t.items()}, sys.argv[1], dict(torch=torch.__version__, seed=sys.argv[2]))
