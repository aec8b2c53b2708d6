"""Graphs of ATen operators, as torch.export makes them: sub-bit layers put in, what is around them folded into them.

capture      a module or an exported program -> a graph whose weights are attributes
find         convolutions and products whose weight is sub-bit -> sites, a node each
fold         BatchNorm, scale, bias, residual, activation, shift -> the epilogue of the site before them
signs        sign -> the site after it; binary activations between two sites stay packed
pooling      monotone operations move before max-pooling; binary activations stay packed
dense        what stays dense: BatchNorms folded, memory in the order that is quickest
layers       sites -> SubbitConv2d and SubbitLinear
signature    inputs checked once per size; no trees where there are none
rewrite      all of it, for a graph and for an exported program
"""

from subbit_infer.conversion.graph.capture import capture
from subbit_infer.conversion.graph.rewrite import rewrite, rewrite_program

__all__ = ["capture", "rewrite", "rewrite_program"]
