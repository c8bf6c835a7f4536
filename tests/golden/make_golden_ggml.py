"""Makes ggml_quantize.safetensors: blocks as llama.cpp's own library writes them.

    pip install llama-cpp-python numpy safetensors; python make_golden_ggml.py OUT.safetensors
"""

import ctypes
import glob
import os
import sys

import numpy as np
from safetensors.numpy import save_file

TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8,
         "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}


def library():
    folder = os.environ.get("GGML_LIB")
    if folder is None:
        import llama_cpp
        folder = os.path.join(os.path.dirname(llama_cpp.__file__), "lib")
    return ctypes.CDLL(glob.glob(os.path.join(folder, "libggml-base.so*"))[0])


def inputs():
    """Rows of 512: normal, heavy-tailed, one outlier, positive, negative, zeros among others, ties, tiny, large, constant."""
    rng = np.random.default_rng(20261)
    n = lambda *shape: rng.standard_normal(shape)
    rows = [n(512) * 0.02, n(512) * 0.5, rng.standard_t(2, 512) * 0.05, np.abs(n(512)), -np.abs(n(512)),
            (np.arange(512) % 31 - 15) * 0.5, n(512) * 1e-7, n(512) * 300.0, np.full(512, 0.75), n(512)]
    outlier = n(512) * 0.01
    outlier[77] = 40.0
    holes = n(512)
    holes[64:96] = 0.0
    holes[256:] = 0.0
    return np.stack(rows + [outlier, holes]).astype(np.float32)


def main(out):
    ggml = library()
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_row_size.restype = ctypes.c_size_t
    x = inputs()
    rng = np.random.default_rng(7)
    importance = (rng.standard_normal(512) ** 2 + 1e-3).astype(np.float32)
    tensors = {"x": x, "importance": importance}
    floats = lambda a: a.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    rows, k = x.shape
    for name, ty in TYPES.items():
        nbytes = ggml.ggml_row_size(ty, ctypes.c_int64(k))
        for suffix, weights in (("", None), (".weighted", floats(importance))):
            blocks = np.zeros((rows, nbytes), np.uint8)
            ggml.ggml_quantize_chunk(ty, floats(x), blocks.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(0),
                                     ctypes.c_int64(rows), ctypes.c_int64(k), weights)
            tensors[name + suffix] = blocks
    save_file(tensors, out)


main(sys.argv[1])
