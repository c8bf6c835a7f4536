#!/usr/bin/env bash
# Optional: Python's torch loads what we saved, with weights_only=True, and computes the same int8 weights. Python is the one
# of AOLAB_PYTHON, else the active environment's, python3, or that of an environment kept in the user's cache; where none of
# them has torch this says so and passes.
set -euo pipefail
cd "$(dirname "$0")/.."
kept="${XDG_CACHE_HOME:-$HOME/.cache}/aolab/torch"
candidates=(${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} python3 "$kept/bin/python")
[ -z "${AOLAB_PYTHON:-}" ] || candidates=("$AOLAB_PYTHON")
python=""
for candidate in "${candidates[@]}"; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import torch' 2>/dev/null; then
        python="$candidate"
        break
    fi
done
if [ -z "$python" ]; then
    echo "skipped: no Python here has torch; set AOLAB_PYTHON to one, or keep one: python3 -m venv $kept && $kept/bin/pip install torch"
    exit 0
fi
"$python" -c 'import sys, torch; print("torch", torch.__version__, "of", sys.executable)'
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
