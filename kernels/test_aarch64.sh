#!/usr/bin/env bash
# Runs the kernels' tests on an emulated ARM processor with NEON and its dot products.
# Wants a Rust that has the target's standard library (`rustup target add aarch64-unknown-linux-gnu`,
# or Debian's libstd-rust-dev:arm64), aarch64-linux-gnu-gcc and qemu-aarch64; where one is missing it
# says so and passes. SYSROOT names the folder with the target's lib/ld-linux-aarch64.so.1.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
skip() { echo "skipped: $1"; exit 0; }
[ -d "$(rustc --print target-libdir --target $target)" ] || skip "no standard library for $target"
for tool in aarch64-linux-gnu-gcc qemu-aarch64; do
    command -v "$tool" >/dev/null || skip "no $tool"
done
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu max -L ${SYSROOT:-/usr/aarch64-linux-gnu}"
cargo test --locked --release --lib -p aolab-kernels --target $target "$@"
