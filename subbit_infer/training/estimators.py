"""Sign with a gradient: what stands for its derivative, which is zero, while a network is trained."""

from __future__ import annotations

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


def stand_in(x: Tensor, estimator: Estimator, t: Tensor, k: Tensor, *, activation: bool = False) -> Tensor:
    """Something differentiable in sign's place, of which only the gradient counts.

    "ede" is k tanh(t x), whose gradient is k t (1 - tanh^2(t x)). "clipped" is x within [-1, 1]; of activations it is
    Bi-Real's polynomial 2x + x^2 below 0 and 2x - x^2 above, within the same bounds.

    Sources: IR-Net (Qin et al., CVPR 2020), section 3.3; Bi-Real Net (Liu et al., ECCV 2018), section 3.
    """
    if estimator == "ede":
        return k * torch.tanh(t * x)
    clipped = x.clamp(-1, 1)
    return clipped * (2 - clipped.abs()) if activation else clipped


def with_gradient(value: Tensor, of: Tensor) -> Tensor:
    """``value``, with the gradient of ``of``: the same bits, since what is added is x - x."""
    return value.detach() + (of - of.detach())
