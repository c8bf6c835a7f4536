#!/usr/bin/env bash
# Optional: lints, builds and tests the feature `torch`, and holds our arithmetic against ATen's. Where libtorch cannot be had it says
# so and passes. Third-party crates are those of the default build, in the same target folder; libtorch's bindings are built
# once (2 minutes on two cores, then kept), and this package at opt-level 1, since only its kernels need to be fast.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! LIBTORCH="$(bash tests/libtorch.sh)"; then
    echo "skipped: no libtorch"
    exit 0
fi
export LIBTORCH
target="${CARGO_TARGET_DIR:-$PWD/target}"
with=(--locked --release --features torch --config 'profile.release.package.aolab.opt-level=1')
cargo clippy "${with[@]}" --lib --test torch --bench libtorch -- -D warnings
# Builds the program, too: the tests run it.
cargo test "${with[@]}" --test torch
"$target/release/aolab" -c "verify torch --strict"
"$target/release/aolab" -c "bench linear --vs torch --shape 512x512 --m 1,16 --format bf16,int4-weight-only --seconds 0.05"
# The default program is put back: what is tested afterwards does not depend on libtorch.
cargo build --locked --release --bin aolab
