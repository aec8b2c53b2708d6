"""Graphs: what is folded into a layer, and that the numbers stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graph_models import C, Lambda, X, layers, norm, operators, rewritten, subbit_conv
from helpers import integers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from subbit_infer.conversion.graph import capture, rewrite


class TestFold:
    @pytest.mark.parametrize(
        ("after", "expected"),
        [
            (lambda m, y: m[1](y), {"bias", "scale"}),
            (lambda m, y: y * m[1].weight[:, None, None] + m[1].bias[:, None, None], {"bias", "scale"}),
            (lambda m, y: y / 3 - 1, {"bias", "scale"}),
            (lambda m, y: F.relu(m[1](y)), {"bias", "scale", "relu"}),
            (lambda m, y: F.hardtanh(y), {"scale", "hardtanh"}),
            (lambda m, y: y.clamp(-1, 1), {"scale", "hardtanh"}),
            (lambda m, y: y.clamp(min=0), {"scale", "relu"}),
            (lambda m, y: F.prelu(y, m[1].running_var), {"scale", "prelu"}),
            (lambda m, y: F.leaky_relu(y, 0.1), {"scale", "prelu"}),
            (lambda m, y: F.relu(y) + m[1].bias[:, None, None], {"scale", "relu", "shift"}),
        ],
    )
    def test_what_follows(self, after, expected):
        new, _ = rewritten(Lambda(lambda m, x: after(m, m[0](x)), subbit_conv(), norm()), X)
        (layer,) = layers(new)
        found = {name for name in ("bias", "scale", "shift") if getattr(layer, name) is not None}
        assert found | ({layer.activation} - {"none"}) == expected
        assert operators(new) == []

    @pytest.mark.parametrize(
        "after",
        [
            lambda m, y: F.relu6(y),
            lambda m, y: y.clamp(-2, 1),
            lambda m, y: y + y,
            lambda m, y: y * y,
            lambda m, y: y + torch.ones(8),  # a number a column
            lambda m, y: 1 / y,
            lambda m, y: 1 - y,
            lambda m, y: F.relu(y) * 2,
            lambda m, y: torch.add(y, torch.ones(1), alpha=2),
            lambda m, y: y.to(torch.float64) + 1,
            lambda m, y: y + torch.ones(C, 1, 1, dtype=torch.float64),
            lambda m, y: (y, F.relu(y)),
            lambda m, y: torch.where(y > 0, y, -y),
        ],
    )
    def test_what_does_not_fit(self, after):
        model = Lambda(lambda m, x: after(m, m[0](x)), subbit_conv())
        (layer,) = layers(rewritten_at_this_size(model))
        assert layer.shift is None
        assert layer.activation in ("none", "relu")

    def test_a_norm_that_is_trained_stays(self):
        model = Lambda(lambda m, x: F.batch_norm(m[0](x), None, None, training=True), subbit_conv())
        new = rewritten_at_this_size(model)
        assert [name for name in operators(new) if "batch_norm" in name]

    def test_residuals(self):
        model = Lambda(lambda m, x: F.relu(m[1](m[0](x)) + x), subbit_conv(), norm())
        new, _ = rewritten(model, X)
        assert operators(new) == []

    def test_a_residual_that_comes_later(self):
        model = Lambda(lambda m, x: m[1](m[0](x)) + torch.tanh(m[2](x)), subbit_conv(), norm(), subbit_conv(seed=2))
        new, _ = rewritten(model, X)
        assert operators(new) == ["aten.tanh.default"]

    def test_a_residual_that_is_broadcast_is_none(self):
        model = Lambda(lambda m, x: m[0](x) + x.mean(1, keepdim=True), subbit_conv())
        assert "aten.add.Tensor" in operators(rewritten(model, X)[0])

    def test_no_factor_after_a_residual(self):
        model = Lambda(lambda m, x: m[1](m[0](x) + x), subbit_conv(), norm())
        new, _ = rewritten(model, X)
        assert [name for name in operators(new) if "batch_norm" in name]

    def test_half_precision(self):
        model = nn.Sequential(subbit_conv(), norm(), nn.ReLU()).eval().half()
        new, _ = rewrite(capture(model, (X.half(),)))
        with torch.no_grad():
            torch.testing.assert_close(new(X.half()), model(X.half()), rtol=1e-2, atol=1e-1)

    def test_inputs_without_a_batch(self):
        model = nn.Sequential(subbit_conv(), nn.ReLU())
        new, _ = rewrite(capture(model, (X[0],)))
        with torch.no_grad():
            assert torch.equal(new(X[0]), model(X[0]))


def rewritten_at_this_size(model):
    """As rewritten, for functions that fit one size only."""
    model.eval()
    new, _ = rewrite(capture(model, (X,)))
    with torch.no_grad():
        torch.testing.assert_close(new(X), model(X), rtol=1e-5, atol=1e-4)
    return new


STEPS = {
    "norm": lambda m, x, y: m[1](y),
    "scale": lambda m, x, y: y * 0.5,
    "negative": lambda m, x, y: y * -m[1].running_var[:, None, None],
    "bias": lambda m, x, y: y + m[1].bias[:, None, None],
    "subtract": lambda m, x, y: y - 2,
    "residual": lambda m, x, y: y + x,
    "residual first": lambda m, x, y: x + y,
    "relu": lambda m, x, y: F.relu(y),
    "hardtanh": lambda m, x, y: F.hardtanh(y),
    "prelu": lambda m, x, y: F.prelu(y, m[1].running_var),
    "sign": lambda m, x, y: y.sign(),
    "conv": lambda m, x, y: m[2](y),
    "conv of signs": lambda m, x, y: m[2](y.sign()),
    "pool": lambda m, x, y: F.max_pool2d(y, 3, 1, 1),
}


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=7), seed=st.integers(0, 9))
def test_any_chain(steps, seed):
    """Whatever follows what: the same numbers, to the bit where all is exact but BatchNorm."""
    assume(steps.count("conv") <= 2)  # each multiplies sums by up to some hundred: more of them exceed 2^24, and round

    def forward(m, x):
        y = m[0](x)
        for step in steps:
            y = STEPS[step](m, x, y)
        return y

    bn = norm(seed)
    for vector in (bn.weight.data, bn.bias.data, bn.running_mean):  # exact: quarters, and gains that are powers of 2
        vector.copy_((4 * vector).round().clamp(-8, 8) / 4)
    bn.running_var.copy_(torch.tensor([0.25, 1.0, 4.0])[torch.arange(C) % 3])
    bn.weight.data.copy_(torch.tensor([0.5, -1.0, 2.0, 1.0])[torch.arange(C) % 4])
    bn.eps = 0.0
    model = Lambda(forward, subbit_conv(), bn, subbit_conv(seed=seed)).eval()
    x = integers(2, C, 5, 5, seed=seed)
    new, report = rewrite(capture(model, (x,)))
    assert len(report.converted) == 1 + steps.count("conv") + steps.count("conv of signs")
    with torch.no_grad():
        assert torch.equal(new(x), model(x))
