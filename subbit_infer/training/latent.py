"""A layer's weight while it is trained: a latent weight of floats, and the codewords that it stands for.

    latent weight --standardize--> units --nearest codeword--> +-1 --times the channel's scale--> weight

The nearest codeword is a step function, so the latent weight gets the gradient of a stand-in for sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subbit_infer.core.units import Unit
from subbit_infer.ops.assignment import nearest
from subbit_infer.training.config import Config
from subbit_infer.training.estimators import Scaled, SignOf, temperatures


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
        steps: of the optimizer; evaluation and gradient accumulation do not count.
        progress: the fraction of the training that is done.
        is_due: whether the step of the optimizer that comes is one in ``config.every``, which may change the codebook.
            A flag of its own, so that a compiled step has two graphs and not one for each number of steps.
    """

    codebook: Tensor | None
    patterns: Tensor | None

    def __init__(self, config: Config, unit: Unit, codebook: Tensor | None, seed: int) -> None:
        super().__init__(config)
        self.unit, self.seed = unit, seed
        self.register_buffer("codebook", codebook)
        is_refined = config.method == "snn"
        self.register_buffer(
            "patterns", _patterns(codebook, config, seed) if is_refined and codebook is not None else None
        )
        self.count_steps(0)
        self.set_progress(0.0)

    def count_steps(self, steps: int) -> None:
        """Says how many steps of the optimizer were made, and forgets what patterns have collected."""
        self.steps = steps
        self.is_due = steps % self.config.every == self.config.every - 1
        # Zeros that are added to the codewords collect the gradient of the patterns. They are no parameter: the
        # optimizer and DistributedDataParallel have nothing to do with them.
        collects = self.is_due and self.patterns is not None
        self._zeros = torch.zeros_like(cast("Tensor", self.codebook)).requires_grad_() if collects else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.count_steps(self.steps)  # the zeros where the codebook is now
        return self

    def set_progress(self, fraction: float) -> None:
        """Moves the estimator to a fraction of the training, 0 to 1, and keeps it for the codebook's schedule."""
        super().set_progress(fraction)
        self.progress = fraction

    def get_extra_state(self) -> Tensor:
        """Steps and progress, float64 (2,), for ``state_dict``. Buffers on a GPU would be waited for at every step."""
        return torch.tensor([self.steps, self.progress], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """The inverse of :meth:`get_extra_state`."""
        steps, self.progress = state.tolist()
        self.count_steps(int(steps))

    def forward(self, latent: Tensor) -> Tensor:
        """(C_out, C_in / groups, kh, kw) of floats to the same of +-scale."""
        weight = self.standardized(latent)
        if self.codebook is None:
            binary = torch.where(weight.detach() >= 0, 1.0, -1.0)
        else:
            binary = self._codewords(weight.detach())
        scaled: Tensor = Scaled.apply(  # type: ignore[no-untyped-call]
            binary, weight, self.scale(weight), self.temperature, self.gain, self.config.estimator_of_weights
        )
        return scaled

    def standardized(self, latent: Tensor) -> Tensor:
        """The latent weight minus its mean, over its deviation, per output channel; in float32."""
        latent = latent.float()
        if not self.config.standardize:
            return latent
        flat = latent.flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        # The deviation, unbiased, of what has no mean: a sixth of the time of torch's std.
        degrees = max(flat.shape[1] - 1, 1)
        deviation = torch.linalg.vector_norm(flat, dim=1, keepdim=True) / math.sqrt(degrees)
        standardized: Tensor = (flat / deviation.clamp_min(1e-12)).view_as(latent)
        return standardized

    def scale(self, weight: Tensor) -> Tensor:
        """The scale of each output channel of a standardized weight, (C_out, 1, 1, 1), without a gradient."""
        mean = weight.detach().abs().flatten(1).mean(1).clamp_min(1e-12)
        if self.config.power_of_two_scale:
            mean = torch.exp2(torch.round(torch.log2(mean)))
        return mean.view(-1, *(1,) * (weight.dim() - 1))

    def units(self, weight: Tensor) -> Tensor:
        """A standardized weight cut into units, (C_out * U, taps)."""
        return weight.reshape(-1, math.prod(self.unit))  # the taps of a unit are consecutive, or its channels

    def nearest(self, units: Tensor) -> Tensor:
        """The index of the nearest codeword of each unit, int64."""
        assert self.codebook is not None
        return nearest(units.detach(), self.codebook)

    def _codewords(self, weight: Tensor) -> Tensor:
        codebook = self.codebook
        assert codebook is not None
        indices = self.nearest(self.units(weight))
        if self._zeros is not None and self.training:
            codebook = codebook + self._zeros
        return F.embedding(indices, codebook).view_as(weight)  # unlike codebook[indices] its gradient has one order

    @property
    def pattern_grad(self) -> Tensor | None:
        """The gradient of the patterns since the last refinement, (K, taps), or None."""
        return None if self._zeros is None else self._zeros.grad


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
        signs: Tensor = SignOf.apply(x, self.temperature, self.gain, self.config.estimator)  # type: ignore[no-untyped-call]
        return signs
