"""Sign with a gradient: what stands for its derivative, which is zero, while a network is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from subbit_infer.training.config import Estimator


def temperatures(fraction: float, t_min: float, t_max: float) -> tuple[float, float]:
    """The error decay estimator's t and k at a fraction of the training.

    Returns:
        t = t_min (t_max / t_min)^fraction and k = max(1 / t, 1).

    Source: IR-Net (Qin et al., CVPR 2020), section 3.3.
    """
    t = t_min * (t_max / t_min) ** fraction
    return t, max(1 / t, 1.0)


def derivative(x: Tensor, estimator: Estimator, t: Tensor, k: Tensor, *, activation: bool = False) -> Tensor:
    """What stands for the derivative of sign at x.

    "ede" is that of k tanh(t x): k t (1 - tanh^2(t x)). "clipped" is 1 within [-1, 1]; of activations it is that of
    Bi-Real's polynomial, 2x + x^2 below 0 and 2x - x^2 above, within the same bounds. "straight" is 1.

    Sources: IR-Net (Qin et al., CVPR 2020), section 3.3; Bi-Real Net (Liu et al., ECCV 2018), section 3.
    """
    if estimator == "ede":
        slope = torch.tanh(x * t)
        return slope.square_().neg_().add_(1).mul_(k * t)
    if estimator == "straight":
        return torch.ones_like(x)
    magnitude = x.abs()
    is_inside = magnitude <= 1
    return (2 - 2 * magnitude) * is_inside if activation else is_inside.to(x.dtype)


class Scaled(torch.autograd.Function):
    """scale * binary, where binary stands for the signs of a latent weight, or codewords near them.

    Arguments: binary, weight, scale, t, k, estimator. The weight gets the gradient by :func:`derivative`, binary its
    own (of codewords that learn), the scale none. Only the weight and the scale are kept for it.
    """

    @staticmethod
    def forward(binary: Tensor, weight: Tensor, scale: Tensor, t: Tensor, k: Tensor, estimator: Estimator) -> Tensor:
        """The product."""
        return scale * binary

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps what the gradient needs."""
        _, weight, scale, t, k, ctx.estimator = inputs
        ctx.save_for_backward(weight, scale, t, k)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of each argument."""
        weight, scale, t, k = ctx.saved_tensors
        scaled = grad * scale
        own = scaled if ctx.needs_input_grad[0] else None
        return own, scaled * derivative(weight, ctx.estimator, t, k), None, None, None, None


class SignOf(torch.autograd.Function):
    """The sign of activations x, 0 of 0. Arguments: x, t, k, estimator; the gradient is by :func:`derivative`."""

    @staticmethod
    def forward(x: Tensor, t: Tensor, k: Tensor, estimator: Estimator) -> Tensor:
        """The sign."""
        return x.sign()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps what the gradient needs."""
        x, t, k, ctx.estimator = inputs
        ctx.save_for_backward(x, t, k)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of each argument."""
        x, t, k = ctx.saved_tensors
        return grad * derivative(x, ctx.estimator, t, k, activation=True), None, None, None
