"""The dense convolution on the CPU, where neither sharing responses nor matching bits pays."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from subbit_infer.backends.cache import version_of
from subbit_infer.backends.executable import outputs_of
from subbit_infer.core import reference
from subbit_infer.core.conv_args import ConvArgs, Outputs
from subbit_infer.core.epilogue import Epilogue
from subbit_infer.core.sizes import pair


class Dense:
    """An executable: convolves with a decoded weight by torch, in float32 whatever surrounds the call.

    Args:
        weight: (C_out, C_in / groups, kh, kw) float32.
        is_same: whether a tensor still is what its copy says.
    """

    launch = None

    def __init__(self, weight: Tensor, is_same: Callable[[Tensor, Tensor], bool]) -> None:
        self._weight = weight
        self._is_same = is_same
        self._scaled: _Scaled | None = None

    def __call__(self, args: ConvArgs) -> Outputs:
        """Runs it on arguments as kernels read them."""
        x = args.float_x()
        if args.activation_bits == 1:  # sums of binary activations are exact, and so is what follows them
            x = x if args.is_packed else reference.binarize(x, args.sign_zero)
            return outputs_of(args, args.epilogue.apply(self._convolve(args, x, None, None)))
        sums = self._convolve(args, x, args.scale, args.bias)
        if args.residual is None and args.activation == "none" and args.shift is None:
            return outputs_of(args, sums)
        rest = Epilogue(None, None, args.residual, args.activation, args.slope, args.shift)
        return outputs_of(args, rest.apply(sums))

    def _convolve(self, args: ConvArgs, x: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
        weight = self._weight if scale is None else self._times(scale)
        geometry = pair(args.stride), pair(args.padding), pair(args.dilation), args.groups
        if not torch.is_autocast_enabled("cpu"):
            return reference.dense_conv2d(x, weight, bias, *geometry)
        with torch.autocast("cpu", enabled=False):
            return reference.dense_conv2d(x, weight, bias, *geometry)

    def _times(self, scale: Tensor) -> Tensor:
        """The weight times scale; kept, and made again when the scale changes."""
        kept = self._scaled
        if kept is None or kept.scale is not scale or not kept.is_current(self._is_same):
            with torch.no_grad():
                kept = self._scaled = _Scaled(scale, self._weight * scale[:, None, None, None])
        return kept.weight


class _Scaled:
    """A weight times a scale, and what the scale was."""

    def __init__(self, scale: Tensor, weight: Tensor) -> None:
        self.scale = scale
        self.weight = weight
        self._version = version_of(scale)
        self._copy = scale.clone() if scale.is_inference() else None  # changes are not counted

    def is_current(self, is_same: Callable[[Tensor, Tensor], bool]) -> bool:
        """Whether the scale is what it was."""
        if self._copy is not None:
            return is_same(self.scale, self._copy)
        return self._version == version_of(self.scale)
