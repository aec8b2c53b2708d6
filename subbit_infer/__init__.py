"""Fast inference for sub-bit neural networks (Wang et al., ICCV 2021).

A sub-bit weight stores a binary convolution in less than one bit a weight: each 3x3 kernel, or vector of 8 channels of
a 1x1 convolution, is one of the few codewords of its layer's codebook, named by a tau-bit index. ``conv`` computes
every codeword's response once and gathers the responses through the indices.
"""

from subbit_infer import checkpoint, codebook, cost, files, nn, reference
from subbit_infer.activations import PackedActivations
from subbit_infer.compress import compress
from subbit_infer.convert import VerificationError, convert
from subbit_infer.explain import Explanation, explain
from subbit_infer.files import load, save
from subbit_infer.ops import conv, linear, pack
from subbit_infer.weight import PackedWeight, load_weights, save_weights

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "PackedActivations",
    "PackedWeight",
    "VerificationError",
    "checkpoint",
    "codebook",
    "compress",
    "conv",
    "convert",
    "cost",
    "explain",
    "files",
    "linear",
    "load",
    "load_weights",
    "nn",
    "pack",
    "reference",
    "save",
    "save_weights",
]
