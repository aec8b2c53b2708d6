"""The two oracles agree with each other, and with a third that shares nothing with them."""

from __future__ import annotations

import pytest
import torch
from helpers import UNIT_1X1, UNIT_3X3, expected_conv, integers, random_weight

from subbit_infer.core import reference


@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1, (1, 5, 5), (4, 1, 1), (2, 3, 1), (1, 2, 2)])
@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [
    ((1, 1), (1, 1), (1, 1), 1), ((2, 1), (0, 2), (1, 2), 2), ((3, 2), (4, 4), (2, 1), 3),
])  # fmt: skip
def test_oracles_agree_exactly(unit, activation_bits, stride, padding, dilation, groups):
    indices, codebook = random_weight(unit, 6, 4, min(16, 2 ** (unit[0] * unit[1] * unit[2])))
    x = integers(2, 4 * unit[0] * groups, 9, 11)
    bias, scale = integers(6, seed=1), integers(6, seed=2)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    for sign_zero in (0, 1):
        arguments = (x, indices, codebook, bias, stride, padding, dilation, groups)
        modes = {"scale": scale, "activation_bits": activation_bits, "sign_zero": sign_zero}
        decoded = reference.conv2d(*arguments, **modes)
        assert torch.equal(decoded, reference.conv2d_shared(*arguments, **modes))
        assert torch.equal(decoded.double(), expected_conv(x, indices, codebook, bias=bias, **modes, **options))


def test_binarize():
    x = torch.tensor([-2.0, -0.0, 0.0, 3.0, float("nan"), float("-inf")])
    assert reference.binarize(x).tolist() == [-1, 0, 0, 1, 0, -1]
    assert reference.binarize(x, sign_zero=1).tolist() == [-1, 1, 1, 1, 0, -1]


def test_padding_contributes_nothing_to_binary_convolutions():
    y = reference.conv2d(
        torch.full((1, 1, 3, 3), -5.0), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, 3, 3), None,
        (1, 1), (1, 1), activation_bits=1,
    )  # fmt: skip
    assert y[0, 0].tolist() == [[-4, -6, -4], [-6, -9, -6], [-4, -6, -4]]
