"""ResNet-50's twelve distinct 1x1 layers at 224 x 224: those of the bottlenecks, all of stride 1."""

from collections.abc import Callable

import pytest

from layers import RESNET50_1X1, Layer


@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("tau", [3, 4, 5, 6])
@pytest.mark.parametrize("layer", RESNET50_1X1, ids=lambda layer: layer.name)
def test_conv1x1(compare: Callable[..., None], layer: Layer, tau: int, activation_bits: int) -> None:
    compare(layer, tau=tau, activation_bits=activation_bits)
