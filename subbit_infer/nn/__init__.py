"""Layers with a sub-bit weight, and pooling of packed activations between them."""

from subbit_infer.nn.layers import Modes, SubbitConv2d, SubbitLinear
from subbit_infer.nn.pooling import PackedMaxPool2d

__all__ = ["Modes", "PackedMaxPool2d", "SubbitConv2d", "SubbitLinear"]
