"""Modules for tests of graphs, and their graphs rewritten."""

from __future__ import annotations

import copy

import torch
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, integers, random_weight
from torch import nn

from subbit_infer.conversion.graph import capture, rewrite
from subbit_infer.nn import SubbitConv2d, SubbitLinear

C = 16


def subbit_conv(in_channels=C, out_channels=C, kernel=3, seed=0, **options):
    """A dense convolution whose weight is sub-bit, with a scale that keeps integers exact."""
    options = {"padding": kernel // 2, "bias": False} | options
    conv = nn.Conv2d(in_channels, out_channels, kernel, **options)
    unit = UNIT_3X3 if kernel == 3 else UNIT_1X1
    units = in_channels // conv.groups // unit[0]
    scale = torch.tensor([0.5, 1.0, 2.0])[torch.arange(out_channels) % 3]
    conv.weight.data = dense_weight(*random_weight(unit, out_channels, units, 16, seed)) * scale[:, None, None, None]
    return conv


def norm(seed=0, channels=C):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bn = nn.BatchNorm2d(channels)
        bn.weight.data = torch.randn(channels)
        bn.bias.data = torch.randn(channels)
        bn.running_mean.copy_(torch.randn(channels))
        bn.running_var.copy_(torch.rand(channels) + 0.5)
    return bn.eval()


class Lambda(nn.Module):
    """Modules, and a function of them and the input."""

    def __init__(self, function, *modules):
        super().__init__()
        self.m = nn.ModuleList(modules)
        self.function = function

    def forward(self, x):
        return self.function(self.m, x)


def rewritten(model, x, folds=True):
    """The rewritten model, checked against the model on x and on another batch and size."""
    model.eval()
    before = copy.deepcopy(model.state_dict())
    new, report = rewrite(capture(model, (x,)), folds=folds)
    for images in (x, x[:1], torch.cat([x, x], 2)):
        with torch.no_grad():
            expected, y = model(images), new(images)
        for a, b in zip(torch.utils._pytree.tree_leaves(y), torch.utils._pytree.tree_leaves(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(expected_scale(b)))
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    return new, report


def expected_scale(y):
    return max(1.0, float(y.abs().max()))


def layers(module):
    return [m for m in module.modules() if isinstance(m, SubbitConv2d | SubbitLinear)]


def operators(module):
    return [str(n.target) for n in module.graph.nodes if n.op == "call_function"]


X = integers(2, C, 8, 8)
