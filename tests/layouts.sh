#!/usr/bin/env bash
# Optional: Python's torchao loads what `save --layout torchao` wrote, workflow by workflow, and dequantizes it to the same numbers.
# Where there is no torchao for Python (set AOLAB_PYTHON to one that has it) this says so and passes.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${AOLAB_PYTHON:-python3}"
if ! "$python" -c 'import torchao.prototype.safetensors.safetensors_support' 2>/dev/null; then
    echo "skipped: $python has no torchao with the safetensors layout"
    exit 0
fi
cargo build --locked --release --bin aolab
"$python" tests/layouts/torchao_layout.py all "${CARGO_TARGET_DIR:-$PWD/target}/release/aolab"
