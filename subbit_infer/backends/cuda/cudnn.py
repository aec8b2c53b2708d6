"""The dense convolution on CUDA devices: by cuDNN, where no kernel is faster."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from subbit_infer.backends import fallback
from subbit_infer.backends.cuda.packing import pack
from subbit_infer.backends.cuda.weight import Prepared
from subbit_infer.backends.executable import outputs_of
from subbit_infer.core import reference
from subbit_infer.core.conv_args import ConvArgs, OutputLayout, Outputs
from subbit_infer.core.sizes import pair

_MOST_OF_CUDNN = 2**31 - 1  # elements of a tensor


def has_cudnn(x: Tensor, sizes: tuple[int, int, int, int]) -> bool:
    """Whether there is a cuDNN that can convolve x (N, C, H, W) into an output of these sizes."""
    fits = x.numel() <= _MOST_OF_CUDNN and math.prod(sizes) <= _MOST_OF_CUDNN
    return bool(fits and torch.backends.cudnn.is_available() and torch.backends.cudnn.enabled)


def dense_sums(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    *,
    allow_tf32: bool,
) -> Tensor:
    """``F.conv2d`` by cuDNN, with TF32 or without it whatever torch's flags say, and always with the same bits."""
    benchmark = torch.backends.cudnn.benchmark
    with torch.autocast("cuda", enabled=False):
        result: Tensor = torch.ops.aten.cudnn_convolution(
            x, weight, padding, stride, dilation, groups, benchmark, True, allow_tf32
        )
    return result


class Cudnn:
    """An executable: convolves with the decoded weight by cuDNN, or by the definition where there is none.

    float32 is convolved without TF32, whatever torch's flags; float16 and bfloat16 with it, where products with +-1 are
    exact, or in their own type if rounding is the last thing done to the sums. Sums of binary activations are rounded
    to the integers that they are: some of cuDNN's algorithms are not exact.
    """

    launch = None

    def __init__(self, weight: Prepared, layout: OutputLayout) -> None:
        self._weight = weight
        self._sizes = layout.sizes

    def __call__(self, args: ConvArgs) -> Outputs:
        """Runs it on arguments as kernels read them."""
        binary = args.activation_bits == 1
        dtype = args.dtype if args.epilogue_commutes_with_rounding and not binary else torch.float32
        x = args.float_x() if args.is_packed else args.x
        x = (reference.binarize(x, args.sign_zero) if binary and not args.is_packed else x).to(dtype)
        x, padding = reference.padded(x, args.unit[1:], pair(args.padding), pair(args.dilation))
        if not has_cudnn(x, self._sizes):
            return fallback.convolve(args)
        sums = dense_sums(
            x,
            self._weight.dense(dtype, args.decoded),
            pair(args.stride),
            padding,
            pair(args.dilation),
            args.groups,
            allow_tf32=args.dtype != torch.float32 and not binary,
        )
        return outputs_of(args, args.epilogue.apply(sums.round_() if binary else sums), pack)
