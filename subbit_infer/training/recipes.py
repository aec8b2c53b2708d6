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
        config: of its sub-bit layers.
        optimizer: "sgd" or "adam".
        rate: the learning rate that training starts with.
        momentum: of SGD.
        weight_decay: of all parameters.
        schedule: of the learning rate, to 0: "cosine" or "linear".
        batch: images per step.
        epochs: on CIFAR-10 or, of ``TWO_STAGE``, on ImageNet.
    """

    config: Config
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
    # distillation from a float ResNet-34. Adam moves patterns there, by its rate whatever their gradient; ours is some
    # 5e-3 and is used as it is, so that 200 times the rate is as far.
    config=Config(
        method="snn", estimator="clipped", standardize=False, power_of_two_scale=False, every=25, refine_rate=200.0
    ),
    optimizer="adam",
    rate=1e-3,
    momentum=0.0,
    weight_decay=0.0,
    schedule="linear",
    batch=512,
    epochs=256,
)

FIRST_STAGE = replace(TWO_STAGE, config=replace(TWO_STAGE.config, method="float"), weight_decay=1e-5)
"""Step 1 of the two stages: float weights, from which step 2 starts; all its other numbers are step 2's."""

RECIPES = {"paper": PAPER, "two-stage": TWO_STAGE}

T_MIN = {"resnet20": 1e-3, "vgg-small": 1e-1}
"""Where the estimator's temperature starts in IR-Net's code, for networks that differ from the recipe."""


def recipe(name: str, **changes: object) -> Recipe:
    """A recipe by its name, with other numbers in its :class:`Config`.

    With the method "float" the "two-stage" one is its first step.

    Raises:
        ValueError: there is no such recipe, or a number breaks a rule.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(map(repr, RECIPES))}, got {name!r}")
    found = FIRST_STAGE if name == "two-stage" and changes.get("method") == "float" else RECIPES[name]
    return replace(found, config=replace(found.config, **changes))  # type: ignore[arg-type]
