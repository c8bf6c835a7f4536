#!/usr/bin/env bash
# aolab's Jupyter kernel with the real client, and in JupyterLab where there is a Chromium. Both are optional: what
# cannot be had is said, and passes. `tests/jupyter.sh PATH/TO/aolab`; Python packages are kept in the user's cache.
set -euo pipefail
cd "$(dirname "$0")/.."
aolab="$1"
venv="${XDG_CACHE_HOME:-$HOME/.cache}/aolab/jupyter"
if [ ! -e "$venv/ready" ]; then
    if python3 -m venv "$venv" && "$venv/bin/pip" install --quiet jupyter-client nbclient nbconvert ipykernel; then
        touch "$venv/ready"
    else
        echo "skipped: Jupyter's client could not be installed"
        exit 0
    fi
fi
"$venv/bin/python" tests/jupyter_kernel.py "$aolab"
if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then
    echo "skipped: no chromium and chromium-driver, so JupyterLab was not looked at"
    exit 0
fi
if [ ! -e "$venv/lab-ready" ]; then
    if "$venv/bin/pip" install --quiet jupyterlab selenium; then
        touch "$venv/lab-ready"
    else
        echo "skipped: JupyterLab could not be installed"
        exit 0
    fi
fi
"$venv/bin/python" tests/jupyter_browser.py "$aolab"
