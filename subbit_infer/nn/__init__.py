"""Layers with a sub-bit weight."""

from subbit_infer.nn.base import Modes
from subbit_infer.nn.conv import SubbitConv2d
from subbit_infer.nn.linear import SubbitLinear

__all__ = ["Modes", "SubbitConv2d", "SubbitLinear"]
