#!/usr/bin/env bash
# Optional: builds the feature `torch`, tests it, and verifies our arithmetic against ATen's. Where libtorch cannot be had it says so
# and passes. The first build compiles libtorch's bindings, 2 to 3 minutes on two cores; they are kept.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! LIBTORCH="$(bash tests/libtorch.sh)"; then
    echo "skipped: no libtorch"
    exit 0
fi
export LIBTORCH
target="${CARGO_TARGET_DIR:-$PWD/target}"
cargo clippy --locked --release --features torch --all-targets -- -D warnings
cargo build --locked --release --features torch --bin aolab
cargo test --locked --release --features torch --test torch
"$target/release/aolab" -c "verify torch"
"$target/release/aolab" -c "bench linear --vs torch --shape 512x512 --m 1,16 --format bf16,int4-weight-only --seconds 0.05"
# The default program is put back: what is tested afterwards does not depend on libtorch.
cargo build --locked --release --bin aolab
