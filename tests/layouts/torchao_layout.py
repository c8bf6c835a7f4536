#!/usr/bin/env python3
"""torchao's safetensors layout (I02), made and read by torchao itself. Needs torch and torchao 0.18.
  torchao_layout.py make FILE.safetensors           small layers in every class, flattened, and their values: what tests/io_layouts.rs reads
  torchao_layout.py check FOLDER FILE.pt            loads what `save FOLDER --layout torchao` wrote; every weight must stand for the numbers that
                                                    `save FILE.pt` wrote of the same model, rounded to the dtype that torchao dequantizes to
  torchao_layout.py all AOLAB                       the same for every workflow that has a layout, on the built-in model"""
import collections, subprocess, sys, tempfile, warnings; warnings.filterwarnings("ignore")
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

WORKFLOWS = """
int8-weight-only
int8-weight-only --granularity per-tensor
int8-weight-only --granularity per-group:32
int8-dynamic-activation-int8-weight
int8-dynamic-activation-int8-weight --act-mapping-type asymmetric
float8-weight-only
float8-weight-only --weight-dtype float8_e5m2
float8-dynamic-activation-float8-weight --granularity per-row
float8-dynamic-activation-float8-weight --granularity per-tensor
intx-weight-only --weight-dtype int1 --granularity per-group:32
intx-weight-only --weight-dtype int2 --granularity per-group:32 --mapping-type asymmetric
intx-weight-only --weight-dtype int3 --granularity per-group:32
intx-weight-only --weight-dtype int4
intx-weight-only --weight-dtype int5 --granularity per-group:64 --mapping-type asymmetric
intx-weight-only --weight-dtype int6 --granularity per-group:32
intx-weight-only --weight-dtype int7 --granularity per-group:32
intx-weight-only --weight-dtype int8
int8-dynamic-activation-intx-weight --weight-dtype int4
int8-dynamic-activation-intx-weight --weight-dtype int4 --weight-mapping-type asymmetric
int4-weight-only --group-size 32
int4-weight-only --group-size 128
mx-weight-only --weight-dtype e4m3
mx-weight-only --weight-dtype e5m2
mx-weight-only --weight-dtype e2m3
mx-weight-only --weight-dtype e3m2
mx-weight-only --weight-dtype e2m1
mx-dynamic-activation-mx-weight --weight-dtype e4m3 --activation-dtype e4m3
mx-dynamic-activation-mx-weight --weight-dtype e2m1 --activation-dtype e2m1
nvfp4-weight-only
nvfp4-dynamic-activation-nvfp4-weight
gptq --base 'int4-weight-only --group-size 32' --sequences 2
""".strip().splitlines()

def check(folder, numbers):
    with safe_open(f"{folder}/model.safetensors", "pt") as f: tensors, metadata = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    loaded, left = unflatten_tensor_state_dict(tensors, metadata)
    assert not left, f"left over: {list(left)[:3]}"
    ours, classes = torch.load(numbers, weights_only=True), collections.Counter()
    for name, t in loaded.items():
        if type(t) is torch.Tensor and name not in ours: continue
        theirs = t if type(t) is torch.Tensor else values(t)
        # Some of its classes dequantize to the dtype that the weight came in.
        mine = ours[name].float() if type(t).__name__ in ("MXTensor", "NVFP4Tensor", "Int4Tensor") else ours[name].to(t.dtype).float()
        assert torch.equal(theirs.float(), mine), f"{name}: {type(t).__name__} stands for other numbers, by {(theirs.float() - mine).abs().max()}"
        classes[type(t).__name__] += 1
    return dict(classes)

def all_of(aolab):
    for words in WORKFLOWS:
        with tempfile.TemporaryDirectory() as dir:
            subprocess.run([aolab, "-c", f"quantize tiny {words} | save {dir}/model --layout torchao; save {dir}/numbers.pt"], check=True, capture_output=True)
            print(f"{words}: {check(dir + '/model', dir + '/numbers.pt')}", flush=True)
    print(f"{len(WORKFLOWS)} workflows load in torchao {torchao.__version__} and stand for the same numbers")

{"make": make, "check": lambda folder, numbers: print(check(folder, numbers)), "all": all_of}[sys.argv[1]](*sys.argv[2:])
