#!/usr/bin/env bash
# Optional: every type of block that `save NAME.gguf` writes runs in llama.cpp and predicts there as it does here. Where there is no
# llama-cpp-python (set AOLAB_PYTHON to a Python that has it, and numpy) this says so and passes.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${AOLAB_PYTHON:-python3}"
if ! "$python" -c 'import llama_cpp, numpy' 2>/dev/null; then
    echo "skipped: $python has no llama_cpp"
    exit 0
fi
cargo build --locked --release --bin aolab
"$python" tests/gguf_llama_cpp.py "${CARGO_TARGET_DIR:-$PWD/target}/release/aolab"
