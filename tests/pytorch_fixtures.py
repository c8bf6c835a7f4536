"""Writes tests/pytorch/*.pt with PyTorch itself: python tests/pytorch_fixtures.py (torch 2.13 was used).

What the tests expect is written there again in Rust, so that neither side copies the other."""
import collections, os, pathlib, sys
import torch

out = pathlib.Path(__file__).parent / "pytorch"
out.mkdir(exist_ok=True)


def save(name, value, **options):
    torch.save(value, out / name, **options)


# Every dtype that torch writes: three values of each, and what a float8 has at its edges.
values = {}
for dtype in "float64 float32 float16 bfloat16".split():
    values[dtype] = torch.tensor([1.5, -2.25, float("inf")], dtype=getattr(torch, dtype))
for dtype in "int64 int32 int16 int8".split():
    info = torch.iinfo(getattr(torch, dtype))
    values[dtype] = torch.tensor([info.min, -1, info.max], dtype=getattr(torch, dtype))
for dtype in "uint8 uint16 uint32".split():
    values[dtype] = torch.tensor([0, 1, torch.iinfo(getattr(torch, dtype)).max], dtype=getattr(torch, dtype))
values["uint64"] = torch.tensor([0, 1, 2**40], dtype=torch.uint64)
values["bool"] = torch.tensor([True, False, True])
for dtype in "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu".split():
    values[dtype] = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(getattr(torch, dtype))
for dtype in "complex32 complex64 complex128".split():
    values[dtype] = torch.tensor([1 + 2j, -3.5j, 0.25 + 0j], dtype=getattr(torch, dtype))
values["float4_e2m1fn_x2"] = torch.tensor([0x10, 0xF7], dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
save("dtypes.pt", values)

# A state dict with its _metadata; a module is never written.
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
model[0].weight.data = torch.arange(12.0).reshape(3, 4)
save("state_dict.pt", model.state_dict())
save("parameters.pt", dict(model.named_parameters()))

# Views: transposed, with an offset, repeated, of one shared storage, empty, without dimensions.
base = torch.arange(24.0).reshape(4, 6)
save("views.pt", {
    "base": base,
    "transposed": base.t(),
    "part": base[1:3, 2:5],
    "repeated": torch.tensor([1.0, 2.0]).expand(3, 2),
    "empty": torch.zeros(0, 5),
    "one": torch.tensor(7.5),
    "same": base,
})

# A checkpoint: nested containers, scalars, an optimizer's state.
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(2, 4)).sum().backward()
optimizer.step()
save("checkpoint.pt", {
    "epoch": 3, "loss": 0.25, "name": "run", "done": False, "none": None, "big": 2**40,
    "state_dict": collections.OrderedDict(w=torch.ones(2), b=torch.zeros(1)),
    "list": [torch.tensor([1]), (torch.tensor([2]), "text")],
    "size": torch.Size([1, 2]), "set": {1}, "bytes": b"xy", "dtype": torch.bfloat16, "device": torch.device("cpu"),
    "optimizer": optimizer.state_dict(),
})

# Before torch 1.6: no zip.
save("legacy.pt", {"w": torch.arange(6, dtype=torch.int16).reshape(2, 3), "t": base.t()},
     _use_new_zipfile_serialization=False)

# What is refused: a whole module, and a call that would run a program.
save("module.pt", torch.nn.Linear(2, 2))


class Evil:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


save("evil.pt", {"w": torch.ones(2), "x": Evil()})

torch.jit.trace(model, torch.ones(1, 4)).save(out / "traced.pt")
print(sum(f.stat().st_size for f in out.iterdir()), "bytes,", torch.__version__, sys.version.split()[0])
