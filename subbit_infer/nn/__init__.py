"""Layers with a sub-bit weight, and pooling of packed activations between them."""

from subbit_infer.nn.base import Modes
from subbit_infer.nn.conv import SubbitConv2d
from subbit_infer.nn.linear import SubbitLinear
from subbit_infer.nn.pooling import PackedMaxPool2d

__all__ = ["Modes", "PackedMaxPool2d", "SubbitConv2d", "SubbitLinear"]
