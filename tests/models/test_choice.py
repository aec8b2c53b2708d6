"""Networks by name: their stems, channels and sizes follow the images, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from subbit_infer import models
from subbit_infer.models.choice import NAMES

RESNETS = ("resnet18", "resnet34", "resnet50", "reactnet18")


def choose(name: str, channels: int = 3, size: tuple[int, int] = (32, 32)) -> nn.Module:
    return models.network_of(name, 1 if name == "reactnet18" else 32, 7, channels, size)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size"), [(1, (28, 28)), (3, (16, 31))])
def test_images_of_any_channels_and_size(name: str, channels: int, size: tuple[int, int]) -> None:
    model = choose(name, channels, size)
    assert model.training
    with torch.no_grad():
        assert model.eval()(torch.randn(2, channels, *size)).shape == (2, 7)


@pytest.mark.parametrize("name", RESNETS)
@pytest.mark.parametrize(("size", "kernel"), [((32, 32), 3), ((64, 64), 3), ((48, 65), 7), ((224, 224), 7)])
def test_small_images_keep_their_size_in_the_stem(name: str, size: tuple[int, int], kernel: int) -> None:
    model = choose(name, size=size)
    assert model.conv1.kernel_size == (kernel, kernel)
    assert isinstance(model.maxpool, nn.Identity) == (kernel == 3)


def test_weights_are_those_of_the_network_and_the_seed() -> None:
    ours = models.network_of("resnet18", 32, 7, 1, (28, 28), seed=3)
    theirs = models.resnet18(32, 7, 3, in_channels=1, stem="cifar")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("make", [models.resnet18, models.resnet34, models.resnet50, models.reactnet18])
def test_other_stems_are_refused(make: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="stem must be one of 'imagenet', 'cifar', got 'tiny'"):
        make(stem="tiny")


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"network must be one of resnet8, .*, reactnet18, got 'resnet19'"):
        models.network_of("resnet19", 32, 10, 3, (32, 32))
    with pytest.raises(ValueError, match="activation_bits of reactnet18 must be 1, got 32"):
        models.network_of("reactnet18", 32, 10, 3, (32, 32))
    with pytest.raises(ValueError, match="size must be at least 8 x 8, got 7 x 32"):
        models.network_of("vgg-small", 32, 10, 3, (7, 32))
