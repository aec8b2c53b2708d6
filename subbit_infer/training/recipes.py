"""The published recipes: every number of them, with where it is from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from subbit_infer.training.config import Config


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        config: of its sub-bit layers; None for a float network.
        optimizer: "sgd" or "adam".
        rate: the learning rate that training starts with.
        momentum: of SGD.
        weight_decay: of all parameters.
        schedule: of the learning rate, to 0: "cosine" or "linear".
        batch: images per step.
        epochs: on CIFAR-10 or, of ``TWO_STAGE``, on ImageNet.
    """

    config: Config | None
    optimizer: Literal["sgd", "adam"]
    rate: float
    momentum: float
    weight_decay: float
    schedule: Literal["cosine", "linear"]
    batch: int
    epochs: int

    def optimizer_for(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer."""
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, self.rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, self.rate, momentum=self.momentum, weight_decay=self.weight_decay)

    def rate_at(self, fraction: float) -> float:
        """The learning rate at a fraction of the training; a function of it alone, so that a run can be resumed."""
        if self.schedule == "linear":
            return self.rate * (1 - fraction)
        return self.rate * (1 + math.cos(math.pi * fraction)) / 2


PAPER = Recipe(
    # Supplement, section A, and IR-Net's code, whose t_min is 1e-3 for ResNet-20 and 1e-1 for VGG-small.
    config=Config(estimator="ede", standardize=True, power_of_two_scale=True, t_min=1e-2, t_max=10.0),
    optimizer="sgd",
    rate=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="cosine",
    batch=256,
    epochs=1000,
)

TWO_STAGE = Recipe(
    # github.com/yikaiw/SNN, "a two-stage improved version": its step 2, whose weights are binary too. Its loss is
    # distillation from a float ResNet-34.
    config=Config(method="snn", estimator="clipped", standardize=False, power_of_two_scale=False, every=25),
    optimizer="adam",
    rate=1e-3,
    momentum=0.0,
    weight_decay=0.0,
    schedule="linear",
    batch=512,
    epochs=256,
)

RECIPES = {"paper": PAPER, "two-stage": TWO_STAGE}

FLOAT_RECIPES = {
    "paper": replace(PAPER, config=None),
    # Step 1 of the two stages has binary activations as well; all of its numbers but the weight decay are step 2's.
    "two-stage": replace(TWO_STAGE, config=None, weight_decay=1e-5),
}
"""The same for networks of float weights: teachers and baselines."""

T_MIN = {"resnet20": 1e-3, "vgg-small": 1e-1}
"""Where the estimator's temperature starts in IR-Net's code, for networks that differ from the recipe."""


def recipe(name: str, **changes: object) -> Recipe:
    """A recipe by its name, with other numbers in its :class:`Config`.

    With the method "float", which :class:`Config` has not, it is the recipe of a float network, without a config.

    Raises:
        ValueError: there is no such recipe, or a number breaks a rule.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(map(repr, RECIPES))}, got {name!r}")
    if changes.get("method") == "float":
        if changes.get("activation_bits", 32) != 32:
            raise ValueError(f"activation_bits must be 32 with the method 'float', got {changes['activation_bits']}")
        return FLOAT_RECIPES[name]
    found = RECIPES[name]
    return replace(found, config=replace(found.config, **changes))  # type: ignore[type-var]
