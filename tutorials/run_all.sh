#!/usr/bin/env bash
# Runs every tutorial from beginning to end and fails at the first that does not come out as it says.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --locked --release --bin aolab
aolab="${CARGO_TARGET_DIR:-$PWD/target}/release/aolab"
for tutorial in tutorials/[0-9][0-9]-*.md; do
    printf '== %s\n' "$tutorial"
    folder="$(mktemp -d)"
    cp "$tutorial" "$folder/"
    (cd "$folder" && "$aolab" run "$(basename "$tutorial")")
    rm -rf "$folder"
done
