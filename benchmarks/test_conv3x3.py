"""ResNet-18's seven distinct 3x3 layers at 224 x 224."""

from collections.abc import Callable

import pytest

LAYERS = [  # channels in and out, side of the input, stride
    (64, 64, 56, 1),
    (128, 128, 28, 1),
    (256, 256, 14, 1),
    (512, 512, 7, 1),
    (64, 128, 56, 2),
    (128, 256, 28, 2),
    (256, 512, 14, 2),
]


@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("tau", [3, 4, 5, 6])
@pytest.mark.parametrize(("c_in", "c_out", "side", "stride"), LAYERS)
def test_conv3x3(
    compare: Callable[..., None], c_in: int, c_out: int, side: int, stride: int, tau: int, activation_bits: int
) -> None:
    compare(c_in, c_out, side, 3, stride, tau=tau, activation_bits=activation_bits)
