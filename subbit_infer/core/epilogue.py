"""What is done to the sums of a convolution: scale, bias, residual, activation, shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from subbit_infer.core.weight import check_channel_vector

ACTIVATIONS = ("none", "relu", "hardtanh", "prelu")
"""The activations, in the order in which compiled kernels number them."""


@dataclass(frozen=True, eq=False)
class Epilogue:
    """``y = act(scale * sum + bias + residual) + shift``.

    In float32 the operations come in this order, each rounded by itself (no fused multiply-add), so that every kernel
    gives the same bits: ``v = sum * scale; v = v + bias; v = v + residual; v = act(v); v = v + shift``. What is None
    is left out. A NaN goes through every activation, as in torch.

    Attributes:
        scale: (C_out,) floats, or None for 1.
        bias: (C_out,) floats, or None for 0.
        residual: (N, C_out, H_out, W_out) floats of any strides, or None for 0.
        activation: "none", "relu", "hardtanh" (between -1 and 1) or "prelu" (v where v > 0, else slope * v).
        slope: (C_out,) floats where the activation is "prelu", else None.
        shift: (C_out,) floats, or None for 0.
    """

    scale: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    activation: str = "none"
    slope: Tensor | None = None
    shift: Tensor | None = None

    def check(self, sizes: Sequence[int]) -> None:
        """Checks the dtypes, and the shapes against the output's ``sizes`` (N, C_out, H_out, W_out).

        Raises:
            TypeError: a tensor is not a tensor of floats, or ``activation`` is not a string.
            ValueError: a shape does not fit, ``activation`` is unknown, or ``slope`` is missing or too many.
        """
        check_channel_vector("scale", self.scale, sizes[1])
        check_channel_vector("bias", self.bias, sizes[1])
        check_activation(self.activation, self.slope is not None)
        check_channel_vector("slope", self.slope, sizes[1])
        check_channel_vector("shift", self.shift, sizes[1])
        if self.residual is None:
            return
        if not isinstance(self.residual, Tensor):
            raise TypeError(f"residual must be a tensor or None, got {type(self.residual).__name__}")
        if not self.residual.is_floating_point():
            raise TypeError(f"residual must be floating point, got {self.residual.dtype}")
        if tuple(self.residual.shape) != tuple(sizes):
            raise ValueError(f"residual must have the output's shape {tuple(sizes)}, got {tuple(self.residual.shape)}")

    def apply(self, sums: Tensor) -> Tensor:
        """The epilogue of ``sums`` (N, C_out, H_out, W_out), in their dtype."""

        def of_channels(vector: Tensor) -> Tensor:
            return vector.to(sums.dtype)[:, None, None]

        v = sums
        if self.scale is not None:
            v = v * of_channels(self.scale)
        if self.bias is not None:
            v = v + of_channels(self.bias)
        if self.residual is not None:
            v = v + self.residual.to(v.dtype)
        if self.activation == "relu":
            v = v.relu()
        elif self.activation == "hardtanh":
            v = v.clamp(-1, 1)
        elif self.slope is not None:
            v = torch.where(v > 0, v, of_channels(self.slope) * v)
        return v if self.shift is None else v + of_channels(self.shift)

    def backward(self, v: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients of what goes into the activation and of the slope, as torch defines them.

        Args:
            v: what goes into the activation, (N, C_out, H_out, W_out); None where the activation is "none".
            grad: the gradient of the result, of the same shape and dtype.

        Returns:
            The gradient of ``v``, and that of the slope, (C_out,), if there is one.
        """
        if v is None:
            return grad, None
        if self.slope is not None:
            slope = self.slope.to(v.dtype)[:, None, None]
            grad_slope = torch.where(v > 0, 0, grad * v).sum((0, 2, 3))
            return torch.where(v > 0, grad, grad * slope), grad_slope
        flat = (v <= -1) | (v >= 1) if self.activation == "hardtanh" else v <= 0
        return torch.where(flat, 0, grad), None


def check_activation(activation: str, has_slope: bool) -> None:
    """Checks that an activation is one of :data:`ACTIVATIONS` and has a slope if and only if it is "prelu".

    Raises:
        TypeError: ``activation`` is not a string.
        ValueError: it is another one, or the slope is missing, or there is one too many.
    """
    if not isinstance(activation, str):
        raise TypeError(f"activation must be a string, got {activation!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
    if has_slope and activation != "prelu":
        raise ValueError(f"slope must be None unless activation is 'prelu', got {activation!r}")
    if activation == "prelu" and not has_slope:
        raise ValueError("slope must be given where activation is 'prelu'")
