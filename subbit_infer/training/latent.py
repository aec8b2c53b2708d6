"""A layer's weight while it is trained: a latent weight of floats, and the codewords that it stands for.

    latent weight --standardize--> units --nearest codeword--> +-1 --times the channel's scale--> weight

The nearest codeword is a step function, so the latent weight gets the gradient of a stand-in for sign.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subbit_infer.core.units import Unit
from subbit_infer.training.config import Config
from subbit_infer.training.estimators import stand_in, temperatures, with_gradient


class Estimated(nn.Module):
    """What takes a sign, and moves its estimator as the training goes on.

    Args:
        config: the estimator and its temperatures.
    """

    temperature: Tensor
    gain: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("temperature", torch.zeros(()))
        self.register_buffer("gain", torch.zeros(()))

    def set_progress(self, fraction: float) -> None:
        """Moves the estimator to a fraction of the training, 0 to 1."""
        t, k = temperatures(fraction, self.config.t_min, self.config.t_max)
        self.temperature.fill_(t)
        self.gain.fill_(k)


class SubbitWeight(Estimated):
    """A parametrization (``torch.nn.utils.parametrize``): the weight that a latent weight stands for.

    Args:
        config: how it is trained.
        unit: (g, kh, kw).
        codebook: (K, taps) of +-1; None for the signs themselves, 1-bit.
        seed: of patterns and of codewords that are drawn anew.

    Attributes:
        codebook: (K, taps) float32 of +-1, or None.
        patterns: what the signs of "snn"'s codewords are taken of, (K, taps); None for other methods.
        pattern_grad: the gradient of the patterns since the last refinement, (K, taps), or None; no buffer, because
            DistributedDataParallel would copy rank 0's over the others'.
        steps: of the optimizer, int64 scalar; evaluation and gradient accumulation do not count.
        progress: the fraction of the training that is done.
    """

    codebook: Tensor | None
    patterns: Tensor | None
    pattern_grad: Tensor | None
    steps: Tensor
    progress: Tensor

    def __init__(self, config: Config, unit: Unit, codebook: Tensor | None, seed: int) -> None:
        super().__init__(config)
        self.unit, self.seed = unit, seed
        self.register_buffer("codebook", codebook)
        is_refined = config.method == "snn"
        self.register_buffer(
            "patterns", _patterns(codebook, config, seed) if is_refined and codebook is not None else None
        )
        self.pattern_grad = None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("progress", torch.zeros(()))
        self.set_progress(0.0)

    def set_progress(self, fraction: float) -> None:
        """Moves the estimator to a fraction of the training, 0 to 1, and keeps it for the codebook's schedule."""
        super().set_progress(fraction)
        self.progress.fill_(fraction)

    def forward(self, latent: Tensor) -> Tensor:
        """(C_out, C_in / groups, kh, kw) of floats to the same of +-scale."""
        weight = self.standardized(latent)
        scale = self.scale(weight)
        if self.codebook is None:
            binary = torch.where(weight >= 0, 1.0, -1.0).to(weight.dtype)
        else:
            binary = self._codewords(weight)
        if not torch.is_grad_enabled():
            return scale * binary
        soft = stand_in(weight, self.config.estimator, self.temperature, self.gain)
        return scale * (binary + (soft - soft.detach()))  # the same bits

    def standardized(self, latent: Tensor) -> Tensor:
        """The latent weight minus its mean, over its deviation, per output channel; in float32."""
        latent = latent.float()
        if not self.config.standardize:
            return latent
        flat = latent.flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        deviation = flat.std(1, keepdim=True) if flat.shape[1] > 1 else torch.ones_like(flat)
        return (flat / deviation.clamp_min(1e-12)).view_as(latent)

    def scale(self, weight: Tensor) -> Tensor:
        """The scale of each output channel of a standardized weight, (C_out, 1, 1, 1), without a gradient."""
        mean = weight.detach().abs().flatten(1).mean(1).clamp_min(1e-12)
        if self.config.power_of_two_scale:
            mean = torch.exp2(torch.round(torch.log2(mean)))
        return mean.view(-1, *(1,) * (weight.dim() - 1))

    def units(self, weight: Tensor) -> Tensor:
        """A standardized weight cut into units, (C_out * U, taps)."""
        return weight.reshape(-1, math.prod(self.unit))  # the taps of a unit are consecutive, or its channels

    @torch.no_grad()
    def nearest(self, units: Tensor) -> Tensor:
        """The index of the nearest codeword of each unit: codewords are of one length, so the greatest product."""
        assert self.codebook is not None
        with torch.autocast(units.device.type, enabled=False):
            return (units.detach() @ self.codebook.t()).argmax(1)

    def _codewords(self, weight: Tensor) -> Tensor:
        assert self.codebook is not None
        units = self.units(weight)
        indices = self.nearest(units)
        if self.patterns is None or not (self.training and torch.is_grad_enabled() and self.refines_next()):
            return F.embedding(indices, self.codebook).view_as(weight)
        codewords = with_gradient(self.codebook, self.patterns.detach().requires_grad_())
        codewords.register_hook(self._keep_gradient)
        return F.embedding(indices, codewords).view_as(weight)  # unlike codewords[indices] it adds up in one order

    def _keep_gradient(self, grad: Tensor) -> None:
        self.pattern_grad = grad.clone() if self.pattern_grad is None else self.pattern_grad + grad

    def refines_next(self) -> bool:
        """Whether the step of the optimizer that comes is one in ``config.every``, which may change the codebook."""
        return int(self.steps) % self.config.every == self.config.every - 1


def _patterns(codebook: Tensor, config: Config, seed: int) -> Tensor:
    """Patterns of random magnitudes whose signs are the codewords."""
    generator = torch.Generator().manual_seed(seed)
    return codebook * (torch.randn(codebook.shape, generator=generator) * config.pattern_scale).abs()


class Sign(Estimated):
    """The sign of activations, with the estimator's gradient; ``finish`` makes it torch's sign."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.set_progress(0.0)

    def forward(self, x: Tensor) -> Tensor:
        """The sign of x, 0 of 0."""
        return with_gradient(x.sign(), stand_in(x, self.config.estimator, self.temperature, self.gain, activation=True))
