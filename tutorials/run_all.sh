#!/usr/bin/env bash
# Runs every tutorial from beginning to end, fails at the first that does not come out as it says, and prints how long each took.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --locked --release --bin aolab
aolab="${CARGO_TARGET_DIR:-$PWD/target}/release/aolab"
times=""
for tutorial in tutorials/[0-9][0-9]-*.md; do
    printf '== %s\n' "$tutorial"
    folder="$(mktemp -d)"
    cp "$tutorial" "$folder/"
    begun=$SECONDS
    # The run store of whoever runs this stays as it is.
    (cd "$folder" && XDG_DATA_HOME="$folder/data" "$aolab" run "$(basename "$tutorial")")
    times+="$(printf '%5d s  %s' "$((SECONDS - begun))" "$tutorial")"$'\n'
    rm -rf "$folder"
done
printf '== times\n%s' "$times"
