"""Layers with a sub-bit weight."""

from subbit_infer.nn.layers import Modes, SubbitConv2d, SubbitLinear

__all__ = ["Modes", "SubbitConv2d", "SubbitLinear"]
