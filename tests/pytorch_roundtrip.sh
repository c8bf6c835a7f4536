#!/usr/bin/env bash
# Optional: Python's torch loads what we saved, with weights_only=True, and computes the same int8 weights. Where there is no torch
# for Python (set AOLAB_PYTHON to one that has it) this says so and passes.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${AOLAB_PYTHON:-python3}"
if ! "$python" -c 'import torch' 2>/dev/null; then
    echo "skipped: $python has no torch"
    exit 0
fi
cargo build --locked --release --bin aolab
aolab="${CARGO_TARGET_DIR:-$PWD/target}/release/aolab"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"$aolab" -c "load tiny | save $folder/user; load tiny | save $folder/user/model.pt" >/dev/null
rm "$folder/user/model.safetensors"
# The file that a PyTorch user has is PyTorch's own: it is loaded and written again there.
"$python" tests/pytorch_roundtrip.py rewrite "$folder/user/model.pt"
"$aolab" -c "load $folder/user | quantize int8-weight-only | save $folder/quantized.pt" >/dev/null
"$python" tests/pytorch_roundtrip.py check "$folder/user/model.pt" "$folder/quantized.pt"
