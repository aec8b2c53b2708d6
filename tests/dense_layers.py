"""Dense modules whose weights are sub-bit, and what a converted model is held to."""

from __future__ import annotations

import torch
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, random_weight
from torch import nn


def subbit(out_channels: int, in_channels: int, kernel: int = 3, seed: int = 0) -> torch.Tensor:
    """A weight of magnitude 1/2, 1, 2 by channels: sums of integers are exact."""
    unit = UNIT_3X3 if kernel == 3 else UNIT_1X1
    dense = dense_weight(*random_weight(unit, out_channels, in_channels // unit[0], 16, seed))
    return dense * 2.0 ** (torch.arange(out_channels) % 3 - 1)[:, None, None, None]


def conv(out_channels: int = 12, in_channels: int = 8, kernel: int = 3, *, bias: bool = False, **options) -> nn.Conv2d:
    module = nn.Conv2d(in_channels, out_channels, kernel, bias=bias, **options)
    module.weight.data = subbit(out_channels, in_channels // module.groups, kernel)
    if bias:
        module.bias.data = torch.arange(out_channels) / 4
    return module


def linear(out_features: int = 12, in_features: int = 16) -> nn.Linear:
    module = nn.Linear(in_features, out_features)
    module.weight.data = subbit(out_features, in_features, 1)[:, :, 0, 0]
    return module


def agrees(model: nn.Module, converted: nn.Module, *inputs: torch.Tensor, exactly: bool = True) -> None:
    with torch.no_grad():
        expected, actual = model(*inputs), converted(*inputs)
    if exactly:
        assert torch.equal(actual, expected)
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def only_layer(report):
    (entry,) = report.layers
    return entry
