"""What a PyTorch user sees of our files: see pytorch_roundtrip.sh."""
import sys
import torch

what, path, *rest = sys.argv[1:]
original = torch.load(path, weights_only=True)
if what == "rewrite":
    # As a training loop keeps it: nested, with an epoch beside it.
    assert all(isinstance(t, torch.Tensor) for t in original.values())
    torch.save({"epoch": 7, "state_dict": original}, path)
    sys.exit()

original = original["state_dict"]
quantized = torch.load(rest[0], weights_only=True)
assert list(quantized) and set(quantized) == set(original), set(quantized) ^ set(original)
layers = 0
for name, theirs in original.items():
    ours = quantized[name]
    assert ours.shape == theirs.shape, name
    w = theirs.float()
    if name.endswith(("_proj.weight", "lm_head.weight")):
        # Int8WeightOnlyConfig: a symmetric scale a row, amax / 127.5, of the weight's dtype; codes round to even.
        scale = (w.abs().amax(1, keepdim=True) / 127.5).to(theirs.dtype).float()
        codes = (w * (1 / scale)).round().clamp(-128, 127)
        worst = ((codes * scale - ours.float()).abs() / scale).max().item()
        # A code may differ where w / scale is a tie up to f32's last bit.
        assert worst <= 1.01, (name, worst)
        moved = ((codes * scale - ours.float()).abs() > 1e-6 * scale).float().mean().item()
        assert moved < 1e-3, (name, moved)
        layers += 1
    else:
        assert torch.equal(w, ours.float()), name
print(f"{layers} layers quantized as torch computes them, {len(original)} tensors in all")
