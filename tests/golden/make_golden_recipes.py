#!/usr/bin/env python3
"""Golden vectors of recipes that other families leave out, from torchao 0.18 on a CPU: module-swap range setting (P16), the integer zero
points of int4's plain_int32 (Q03), the 4- and 8-bit weights of UIntxWeightOnlyConfig (P06).  usage: make_golden_recipes.py OUT.safetensors SEED"""
import sys, types, warnings; warnings.filterwarnings("ignore")
for name in ("transformers", "transformers.models", "transformers.models.llama", "transformers.models.llama.modeling_llama"):
    sys.modules.setdefault(name, types.ModuleType(name))  # module_swap names a class of it that nothing here uses
sys.modules["transformers.models.llama.modeling_llama"].LlamaForCausalLM = object
import torch; torch.set_num_threads(1)
from safetensors.torch import save_file
from torchao.prototype.quantization.module_swap.quantized_modules import QuantizedLinear
from torchao.prototype.quantization.module_swap.quantizers import IntQuantizer
from torchao.prototype.quantization.module_swap.range_setting_methods import set_weight_min_max, set_weight_mse, set_weight_range_activation_loss
from torchao.prototype.quantization.uintx.uintx_bit_packed_tensor import UIntxBitPackedTensor
from torchao.quantization import quant_primitives as QP
from torchao.quantization.quant_primitives import MappingType as MT, choose_qparams_affine, quantize_affine, dequantize_affine

torch.manual_seed(int(sys.argv[2])); N, K, M = 12, 128, 32
w = torch.randn(N, K) * torch.logspace(-2, 1, N)[:, None]; w[3, 9] *= 30; w[5] = w[5].abs() + 0.1; w[6] = -w[6].abs() - 0.1
x = torch.randn(M, K) * torch.logspace(-1, 1, K)[torch.randperm(K)]
t = {"w": w, "x": x}
for mode, short in (("symmetric", "sym"), ("asymmetric", "asym")):
    for bits in (2, 3, 4, 8):
        for size, name in ((32, "g32"), ("per_channel", "row")):
            quantizer = IntQuantizer(num_bits=bits, group_size=size, dynamic=False, quantization_mode=mode)
            layer = QuantizedLinear(8, quantizer, input_quantization=False, in_features=K, out_features=N, bias=False)
            layer.weight.data.copy_(w); model = torch.nn.Sequential(layer)
            for how in ("min-max", "mse", "activation-loss"):
                if how == "min-max": set_weight_min_max(model)
                elif how == "mse": set_weight_mse(model)
                else: set_weight_range_activation_loss(model, x, M, progressive=False)
                p = f"ms.{short}.b{bits}.{name}.{how}"
                t[p + ".scale"], t[p + ".dq"] = layer.weight_scale.detach().reshape(N, -1).clone(), layer.quantized_weight.detach()
for dn, dt in (("bf16", torch.bfloat16), ("f16", torch.float16)):
    for g in (32, 64):
        wd = w.to(dt); s, z = choose_qparams_affine(wd, MT.ASYMMETRIC, (1, g), torch.int32, 0, 15, 1e-6, None, torch.int32)
        q = quantize_affine(wd, (1, g), s, z, torch.int32, 0, 15); p = f"pi32.{dn}.g{g}"
        t[p + ".scale"], t[p + ".zp"], t[p + ".q"] = s.reshape(N, -1), z.reshape(N, -1).to(torch.int8), q.to(torch.uint8)
        t[p + ".dq"] = dequantize_affine(q, (1, g), s, z, torch.int32, 0, 15, output_dtype=torch.float32)
        q, s, z, _ = QP._choose_qparams_and_quantize_affine_hqq(wd, nbits=4, group_size=g, raw_output=True, device="cpu"); p = f"ub4.{dn}.g{g}"
        t[p + ".q"], t[p + ".scale"], t[p + ".zero"] = q, s.reshape(N, -1), z.reshape(N, -1)
    q, s, z = UIntxBitPackedTensor._quantize_weight(w.to(dt), 8, K); p = f"ub8.{dn}.row"
    t[p + ".q"], t[p + ".scale"] = q, s.reshape(N, -1)
save_file({k: v.detach().contiguous() for k, v in t.items()}, sys.argv[1], dict(torch=torch.__version__, seed=sys.argv[2]))
print({k: (str(v.dtype), list(v.shape)) for k, v in t.items() if k[:2] != "ms"})
