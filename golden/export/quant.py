"""Blocks packed by ggml's reference quantisers, and unpacked by the `gguf` package. Writes quant.safetensors.

Needs llama-cpp-python (for libggml-base) and gguf. For the older types the `gguf` package's own quantisers must agree.
"""

import ctypes
import pathlib

import gguf
import llama_cpp
import numpy as np
from gguf.constants import GGMLQuantizationType as T
from safetensors.numpy import save_file

lib = ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
NAMES = {T.Q4_0: "q4_0", T.Q5_0: "q5_0", T.Q5_1: "q5_1", T.Q8_0: "q8_0", T.Q4_K: "q4_K", T.Q5_K: "q5_K", T.Q6_K: "q6_K"}

rng = np.random.default_rng(0)
x = rng.standard_normal((20, 256)).astype(np.float32)
x[1] *= 0.02                                   # as weights are
x[2] = np.abs(x[2])                            # one sign
x[3, ::2] = 0                                  # many zeros
x[4] = np.round(x[4] * 4) / 4                  # many ties
x[5] *= np.exp(rng.standard_normal(256))       # heavy tails
x[6] = 0
x[7, :128] = 0
x[8] = 1.5
x[9] = -x[2]
out = {"values": x}
for kind, name in NAMES.items():
    n_bytes = x.size // gguf.GGML_QUANT_SIZES[kind][0] * gguf.GGML_QUANT_SIZES[kind][1]
    packed = np.zeros(n_bytes, np.uint8)
    reference = getattr(lib, f"quantize_row_{name}_ref")
    reference.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    reference(x.ctypes.data, packed.ctypes.data, x.size)
    if not name.endswith("K"):
        ours = gguf.quants.quantize(x, kind).reshape(-1)
        print(name, "bytes on which ggml and the gguf package differ:", int((ours != packed).sum()))
    out[f"{name}.packed"] = packed
    out[f"{name}.unpacked"] = gguf.quants.dequantize(packed.reshape(20, -1), kind).astype(np.float32)
save_file(out, pathlib.Path(__file__).with_name("quant.safetensors"), {"gguf": "0.19.0", "llama-cpp-python": llama_cpp.__version__})
