"""What a training run is asked for: the method, its codebooks, and the numbers of a published recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from subbit_infer.core.units import MAX_TAU

Method = Literal["float", "1-bit", "vanilla", "snn", "baseline-a", "baseline-b", "baseline-b10", "clustered"]
METHODS: tuple[Method, ...] = get_args(Method)
"""Float weights, the paper's methods by its names, and "clustered", this package's own (see :mod:`codebooks`)."""

Estimator = Literal["ede", "clipped", "straight"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


@dataclass(frozen=True)
class Config:
    """How layers are trained.

    Args:
        method: where the codewords come from. "float": weights stay floats, as in the first of two stages, which has
            binary activations already. "1-bit": no codebook, every weight its own sign (IR-Net). "vanilla":
            random ones. "snn": random ones, refined. "baseline-a": at equal intervals of the full set. "baseline-b",
            "baseline-b10": the most frequent units, counted anew every step or every ten. "clustered": steps of
            k-means on the latent units.
        tau: bits per index, 1 to 8; there are 2^tau codewords. Not used by "float" and "1-bit".
        activation_bits: 32, or 1 to take the sign of what goes into the layers.
        estimator: the gradient of sign. "ede": the error decay estimator of IR-Net, which :func:`set_progress` moves.
            "clipped": 1 where the weight is within [-1, 1], and Bi-Real's polynomial for activations. "straight": 1.
        weight_estimator: the same for weights alone; None: "straight" for "clustered", whose codewords change as whole
            units, so that no tap should be held back by its own magnitude; else ``estimator``.
        standardize: whether latent weights are balanced and standardized per output channel before their signs are
            taken, as in IR-Net.
        power_of_two_scale: whether a channel's scale is 2^round(log2(mean magnitude)), or the mean magnitude itself.
        t_min: where the estimator's temperature starts.
        t_max: where it ends.
        every: steps of the optimizer between two changes of a codebook, of "snn" and "clustered".
        until: the fraction of training after which codebooks stay, of "clustered".
        refine_rate: what "snn" multiplies the learning rate with, for its patterns.
        pattern_scale: the standard deviation of the patterns that "snn" starts with. At 1 no sign turns in a thousand
            steps: a refinement moves patterns by some 5e-4 at a learning rate of 0.1.
        latent_scale: what :func:`prepare` multiplies latent weights with, where they are standardized, so that it
            changes nothing about what they stand for; None: a tenth for "clustered", 1 for the paper's methods. A step
            turns smaller weights farther: at 1, weights after five epochs of Fashion-MNIST still had a correlation of
            0.8 with those they were drawn as (benchmarks/NOTES.md). Give 1 to weights that are trained already.
        seed: of the first layer's codebook; every layer takes the next number.

    Raises:
        ValueError: a value that breaks a rule, by name.

    Sources: supplement, sections A and E; IR-Net (Qin et al., CVPR 2020) for ``estimator`` to ``t_max``; the published
    training code of the paper for ``every``.
    """

    method: Method = "clustered"
    tau: int = 5
    activation_bits: Literal[1, 32] = 32
    estimator: Estimator = "ede"
    weight_estimator: Estimator | None = None
    standardize: bool = True
    power_of_two_scale: bool = True
    t_min: float = 1e-2
    t_max: float = 10.0
    every: int = 25
    until: float = 0.75
    refine_rate: float = 1.0
    pattern_scale: float = 1e-2
    latent_scale: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("method", self.method, METHODS),
            ("estimator", self.estimator, ESTIMATORS),
            ("weight_estimator", self.weight_estimator, (None, *ESTIMATORS)),
            ("activation_bits", self.activation_bits, (1, 32)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        if type(self.tau) is not int or not 1 <= self.tau <= MAX_TAU:
            raise ValueError(f"tau must be an int from 1 to {MAX_TAU}, got {self.tau!r}")
        if not 0 < self.t_min <= self.t_max:
            raise ValueError(f"t_min must be above 0 and at most t_max = {self.t_max}, got {self.t_min}")
        if type(self.every) is not int or self.every < 1:
            raise ValueError(f"every must be an int of at least 1, got {self.every!r}")
        for name, number in (
            ("refine_rate", self.refine_rate), ("pattern_scale", self.pattern_scale),
            ("latent_scale", 1 if self.latent_scale is None else self.latent_scale),
        ):  # fmt: skip
            if not 0 < number < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {number}")
        if not 0 <= self.until <= 1:
            raise ValueError(f"until must be in [0, 1], got {self.until}")

    @property
    def estimator_of_weights(self) -> Estimator:
        """``weight_estimator``, or what None stands for."""
        if self.weight_estimator is not None:
            return self.weight_estimator
        return "straight" if self.method == "clustered" else self.estimator

    @property
    def factor_of_latents(self) -> float:
        """``latent_scale``, or what None stands for; 1 where weights are not standardized."""
        if not self.standardize:
            return 1.0
        if self.latent_scale is not None:
            return self.latent_scale
        return 0.1 if self.method == "clustered" else 1.0
