"""Pooling of packed activations."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from subbit_infer.core.activations import PackedActivations


class PackedMaxPool2d(torch.nn.Module):
    """The maximum over windows of packed activations, without unpacking them: ``torch.nn.MaxPool2d`` without padding.

    Args:
        kernel_size: height and width of a window.
        stride: steps between windows; None for the kernel's size.
    """

    def __init__(self, kernel_size: tuple[int, int], stride: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride

    def forward(self, x: PackedActivations) -> PackedActivations:
        """(N, C, H, W) to (N, C, (H - kernel) // stride + 1, the same of W)."""
        # Of -1, 0 and +1 the maximum is +1 where any is, and -1 where none is and none is 0.
        plus = self._combine(torch.bitwise_or, x.plus)
        nonzero = None if x.nonzero is None else plus | self._combine(torch.bitwise_and, x.nonzero)
        return PackedActivations(plus, nonzero, x.channels, trusted=True)

    def _combine(self, operation: Callable[[Tensor, Tensor], Tensor], words: Tensor) -> Tensor:
        """Combines the words (N, H, W, n) of each window: rows first, then columns."""
        for dimension, kernel, stride in zip((1, 2), self.kernel_size, self.stride, strict=True):
            span = words.shape[dimension] - kernel + 1  # where windows may start
            places = [slice(first, first + span, stride) for first in range(kernel)]
            words = functools.reduce(operation, [words[(slice(None),) * dimension + (place,)] for place in places])
        return words

    def extra_repr(self) -> str:
        """The window, for ``print(model)``."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}"
