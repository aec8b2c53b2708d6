"""Fast inference for sub-bit neural networks (Wang et al., ICCV 2021).

A sub-bit weight stores a binary convolution in fewer than one bit per weight: each 3x3 kernel, or vector of 8 channels
of a 1x1 convolution, is one of the few codewords of its layer's codebook, named by a tau-bit index. ``conv`` computes
every codeword's response once and gathers the responses through the indices.
"""

import sys

from subbit_infer import formats as files
from subbit_infer import models, nn
from subbit_infer import training as train
from subbit_infer.conversion import detection, report
from subbit_infer.conversion.compression import compress
from subbit_infer.conversion.model import VerificationError, convert
from subbit_infer.core import codebook, cost, epilogue, reference
from subbit_infer.core.activations import PackedActivations
from subbit_infer.core.weight import PackedWeight, load_weights, save_weights
from subbit_infer.diagnostics.plans import Explanation, explain
from subbit_infer.formats import checkpoint, load, save
from subbit_infer.ops import registration as operators
from subbit_infer.ops.functional import conv, linear, pack

__version__ = "0.1.0"

# Short names, and those that modules had in 0.1 and that its documentation showed.
recognize = detection
for _name, _module in {
    "checkpoint": checkpoint,
    "codebook": codebook,
    "cost": cost,
    "epilogue": epilogue,
    "files": files,
    "operators": operators,
    "recognize": recognize,
    "reference": reference,
    "report": report,
    "train": train,
}.items():
    sys.modules[f"{__name__}.{_name}"] = _module

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
    "models",
    "nn",
    "pack",
    "reference",
    "save",
    "save_weights",
    "train",
]
