"""Dense convolutions by cuDNN."""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
