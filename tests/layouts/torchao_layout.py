#!/usr/bin/env python3
"""torchao's safetensors layout (I02), made and read by torchao itself. Needs torch and torchao 0.18.
  torchao_layout.py make FILE.safetensors           small layers in every class, flattened, and their values: what tests/io_layouts.rs reads
  torchao_layout.py check FOLDER ORIGINAL_FOLDER    loads what `save FOLDER --layout torchao` wrote, and tells the signal-to-noise of each
                                                    class against the unquantized model that `save ORIGINAL_FOLDER` wrote"""
import collections, json, math, sys, warnings; warnings.filterwarnings("ignore")
import torch, torchao
from safetensors import safe_open
from safetensors.torch import save_file
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict
from torchao.quantization import *
import torchao.quantization.quant_api as QA
from torchao.prototype.mx_formats.inference_workflow import NVFP4WeightOnlyConfig
from torchao.prototype.mx_formats.mx_tensor import MXTensor, ScaleCalculationMode
from torchao.quantization.quantize_.workflows.int4.int4_tensor import Int4Tensor

def values(t):
    if isinstance(t, Int4Tensor):  # it has no dequantize: two nibbles a byte, (q * scale + zero)
        q = torch.stack([(t.qdata << 4).to(torch.int8) >> 4, t.qdata >> 4], -1).flatten(-2).float()
        g = t.block_size[-1]
        return q * t.scale.float().t().repeat_interleave(g, 1) + t.zero_point.float().t().repeat_interleave(g, 1)
    return (t.dequantize(torch.float32) if isinstance(t, MXTensor) or type(t).__name__ == "NVFP4Tensor" else t.dequantize()).float()

def make(path):
    QA._check_hardware_support = lambda *a, **k: None  # only the storage is wanted, no GPU multiplies
    torch.manual_seed(7); w = torch.randn(48, 128) * 0.1; w[3] = 0; w[5, 7] = 4
    made = {}
    for name, config in dict(int8=Int8WeightOnlyConfig(), int8_tensor=Int8WeightOnlyConfig(granularity=PerTensor()), int8_dynamic=Int8DynamicActivationInt8WeightConfig(),
            float8=Float8WeightOnlyConfig(), float8_dynamic=Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
            int3=IntxWeightOnlyConfig(weight_dtype=torch.int3, granularity=PerGroup(32), mapping_type=MappingType.ASYMMETRIC), int4_row=IntxWeightOnlyConfig(weight_dtype=torch.int4),
            da4w=Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32)), nvfp4=NVFP4WeightOnlyConfig()).items():
        layer = torch.nn.Linear(128, 48, bias=False); layer.weight.data.copy_(w); layer = layer.bfloat16()
        quantize_(layer, config); made[name] = layer.weight.data if hasattr(layer.weight, "data") else layer.weight
    for name, element in dict(mxfp8=torch.float8_e4m3fn, mxfp6="fp6_e3m2", mxfp4=torch.float4_e2m1fn_x2).items():
        made[name] = MXTensor.to_mx(w.bfloat16(), element, 32, ScaleCalculationMode.RCEIL, is_swizzled_scales=name == "mxfp8")
    q = torch.randint(-8, 8, (48, 128), dtype=torch.int8); packed = ((q[:, 1::2] << 4) | (q[:, ::2] & 15)).to(torch.int8)
    made["int4"] = Int4Tensor(packed, torch.rand(4, 48).bfloat16(), torch.randn(4, 48).bfloat16(), [1, 32], torch.Size([48, 128]))
    tensors, metadata = flatten_tensor_state_dict({f"{name}.weight": t for name, t in made.items()})
    tensors |= {f"{name}.values": values(t).contiguous() for name, t in made.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)
    print({name: type(t).__name__ for name, t in made.items()})

def check(folder, original):
    def read(folder):
        with safe_open(f"{folder}/model.safetensors", "pt") as f: return {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    dense, _ = read(original); tensors, metadata = read(folder)
    loaded, left = unflatten_tensor_state_dict(tensors, metadata)
    assert not left, f"left over: {list(left)[:3]}"
    worst = collections.defaultdict(lambda: math.inf)
    for name, t in loaded.items():
        w = dense[name].float(); v = t.float() if type(t) is torch.Tensor else values(t)
        db = math.inf if torch.equal(v, w) else 20 * math.log10(w.norm() / (v - w).norm())
        worst[type(t).__name__] = min(worst[type(t).__name__], db)
    print(f"{len(loaded)} tensors load in torchao {torchao.__version__}; least signal-to-noise:", {k: round(v, 1) for k, v in worst.items()})
    assert all(db > 5 for db in worst.values()), "a layer is far from the original"

{"make": make, "check": check}[sys.argv[1]](*sys.argv[2:])
