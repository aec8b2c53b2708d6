"""ResNet-50's distinct 1x1 layers at 224 x 224: those of the bottlenecks, all of stride 1."""

from collections.abc import Callable

import pytest

LAYERS = [  # channels in and out, side
    (64, 64, 56),
    (64, 256, 56),
    (256, 64, 56),
    (256, 128, 56),
    (128, 512, 28),
    (512, 128, 28),
    (512, 256, 28),
    (256, 1024, 14),
    (1024, 256, 14),
    (1024, 512, 14),
    (512, 2048, 7),
    (2048, 512, 7),
]


@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("tau", [3, 4, 5, 6])
@pytest.mark.parametrize(("c_in", "c_out", "side"), LAYERS)
def test_conv1x1(
    compare: Callable[..., None], c_in: int, c_out: int, side: int, tau: int, activation_bits: int
) -> None:
    compare(c_in, c_out, side, 1, 1, tau=tau, activation_bits=activation_bits)
