"""The stand-in for the CUDA module, put in its place, and weights for it."""

from __future__ import annotations

import torch
from helpers import UNIT_3X3, random_weight

from subbit_infer import PackedWeight
from subbit_infer.backends.cuda import convolution
from subbit_infer.backends.cuda import device as cuda_device

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
H100 = cuda_device.Device("NVIDIA H100", 90, 132)
B200 = cuda_device.Device("NVIDIA B200", 100, 148)
IS_RIGHT = convolution._is_right
FIRST = torch.device("cuda", 0)


def count_for(plan):
    """Codewords of a weight that the plan has kernels for."""
    return 8 if plan == "sparse" else 32


def packed(unit=UNIT_3X3, out_channels=10, units=8, codewords=32):
    indices, codebook = random_weight(unit, out_channels, units, codewords)
    return PackedWeight.from_indices(indices, codebook), indices, codebook
