#!/usr/bin/env bash
# Prints the folder of a lean libtorch for the feature `torch`; fetches it once (530 MB over the network, 480 MB on disk, kept in the
# user's cache). The CPU half of PyTorch's wheel is enough: nothing of CUDA is unpacked. Fails with one line where there is
# neither. To use another one (with CUDA, of another version) set LIBTORCH to it.
#     export LIBTORCH="$(bash tests/libtorch.sh)" && cargo build --release --features torch
set -euo pipefail
version="${1:-2.13.0}"
say() { echo "$1" >&2; exit 1; }
if [ -n "${LIBTORCH:-}" ]; then
    [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || say "LIBTORCH is $LIBTORCH, which has no lib/libtorch_cpu.so"
    found="$(cut -d+ -f1 "$LIBTORCH/build-version" 2>/dev/null || true)"
    case "$found" in
        "" | 2.13.*) ;;
        2.11.*) echo "libtorch $found: run 'cargo update -p tch --precise 0.24.0' first" >&2 ;;
        *) say "LIBTORCH holds libtorch $found; this program takes 2.13 (or 2.11 with tch 0.24)" ;;
    esac
    echo "$LIBTORCH"
    exit 0
fi
folder="${XDG_CACHE_HOME:-$HOME/.cache}/aolab/libtorch"
if [ "$(cat "$folder/build-version" 2>/dev/null)" = "$version" ]; then
    echo "$folder"
    exit 0
fi
[ "$(uname -sm)" = "Linux x86_64" ] || say "a lean libtorch is made for Linux on x86_64 only; set LIBTORCH"
command -v nm >/dev/null && command -v cc >/dev/null && command -v c++ >/dev/null || say "a C++ compiler and nm are missing"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
timeout 900 python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --implementation cp \
    --platform manylinux_2_28_x86_64 --dest "$work" "torch==$version" >&2 || say "torch $version could not be fetched"
part="$folder.$$.part"
mkdir -p "$part/lib"
python3 - "$work" "$part" >&2 <<'PYTHON'
import glob, os, shutil, sys, zipfile

work, part = sys.argv[1:]
libraries = {f"torch/lib/{name}" for name in ("libtorch_cpu.so", "libc10.so", "libgomp.so.1")}
with zipfile.ZipFile(glob.glob(work + "/torch-*.whl")[0]) as wheel:
    for name in wheel.namelist():
        header = name.startswith("torch/include/") and not name.endswith("/")
        if header or name in libraries:
            path = os.path.join(part, name.removeprefix("torch/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with wheel.open(name) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
PYTHON
# The profiler alone asks for these two; stand-ins that say "not available" (999) are enough on a CPU.
for name in cudart cupti; do
    so="lib$name.so.13"
    nm -D --undefined-only "$part/lib/libtorch_cpu.so" | awk '{print $2}' | grep "@$so" | cut -d@ -f1 |
        sed 's/.*/int &(void) { return 999; }/' >"$work/$name.c"
    echo "$so { global: *; };" >"$work/$name.map"
    cc -shared -fPIC -O1 -o "$part/lib/$so" "$work/$name.c" "-Wl,-soname,$so" "-Wl,--version-script=$work/$name.map"
done
# Linkers are asked for -ltorch, of which nothing is used.
echo >"$work/empty.c"
cc -shared -fPIC -o "$part/lib/libtorch.so" "$work/empty.c" -Wl,-soname,libtorch.so
echo "$version" >"$part/build-version"
rm -rf "$folder"
mv "$part" "$folder"
echo "$folder"
