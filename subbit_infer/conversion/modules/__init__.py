"""Replaces modules with equivalent sub-bit layers.

signs      tensors that are computed from signs
observe    the convolutions that each module runs, with their weights
judge      modules that are no more than their convolution, tried out on random inputs
replace    the new layers, put in
"""

from subbit_infer.conversion.modules.replace import swap

__all__ = ["swap"]
