"""Modules that compute a sub-bit convolution or linear layer, replaced by layers of this package.

signs      which tensors come from signs
observe    which convolutions run in which module, with which weights
judge      whether a module is no more than its convolution, tried out on random inputs
replace    the layers put in
"""

from subbit_infer.conversion.modules.replace import swap

__all__ = ["swap"]
