#!/usr/bin/env bash
# Two notebooks in the real evcxr kernel with a real client, their executed copies turned into HTML. Optional: what cannot be
# had is said, and passes. The kernel's first build takes ten minutes; it and what the cells build are kept in the user's cache.
# (Every notebook also runs as a plain program: `cargo test -p aolab-notebook-programs`.)
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${XDG_CACHE_HOME:-$HOME/.cache}/aolab"
version=0.22.0
kernel="$cache/evcxr-$version"
python="$cache/jupyter/bin/python"
if [ ! -e "$cache/jupyter/ready" ]; then
    echo "skipped: Jupyter's client could not be installed"
    exit 0
fi
if [ ! -x "$kernel/bin/evcxr_jupyter" ]; then
    # rust-analyzer is most of it, and waits for the compiler more than it computes.
    export CARGO_PROFILE_RELEASE_OPT_LEVEL=1
    if ! CARGO_TARGET_DIR="$kernel/build" cargo install --quiet --locked --root "$kernel" evcxr_jupyter --version "$version"; then
        echo "skipped: evcxr_jupyter could not be installed"
        exit 0
    fi
    rm -rf "$kernel/build"
    unset CARGO_PROFILE_RELEASE_OPT_LEVEL
fi
export JUPYTER_PATH="$kernel/jupyter"
"$kernel/bin/evcxr_jupyter" --install >/dev/null
"$python" tests/notebooks_evcxr.py "$cache/notebooks" \
    notebooks/02-formats.ipynb notebooks/03-write-your-own-format.ipynb
