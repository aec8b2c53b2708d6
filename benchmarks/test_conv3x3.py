"""ResNet-18's seven distinct 3x3 layers at 224 x 224."""

from collections.abc import Callable

import pytest

from layers import RESNET18, Layer


@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("tau", [3, 4, 5, 6])
@pytest.mark.parametrize("layer", RESNET18, ids=lambda layer: layer.name)
def test_conv3x3(compare: Callable[..., None], layer: Layer, tau: int, activation_bits: int) -> None:
    compare(layer, tau=tau, activation_bits=activation_bits)
