"""Graphs: signs that layers take themselves, and activations that stay packed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graph_models import C, Lambda, X, layers, norm, operators, rewritten, subbit_conv
from helpers import UNIT_3X3, integers, random_weight
from torch import nn

from subbit_infer.conversion.graph import capture, rewrite
from subbit_infer.nn import SubbitConv2d


class TestSigns:
    def test_signs_are_taken_inside(self):
        new, report = rewritten(Lambda(lambda m, x: m[0](x.sign()), subbit_conv()), X)
        assert report.layers[0].activation_bits == 1
        assert layers(new)[0].activation_bits == 1
        assert operators(new) == []

    @pytest.mark.parametrize("order", [0, 1])
    def test_signs_with_the_gradient_of_another_function(self, order):
        def binarize(x):
            smooth = torch.where(x < 0, x * x + 2 * x, 2 * x - x * x).clamp(-1, 1)
            if order:
                return smooth + (x.sign().detach() - smooth.detach())
            return x.sign().detach() - smooth.detach() + smooth

        new, report = rewritten(Lambda(lambda m, x: m[0](binarize(x)), subbit_conv()), X)
        assert report.layers[0].activation_bits == 1
        assert operators(new) == []

    @pytest.mark.parametrize(("value", "bits"), [(-1.0, 1), (-2.0, 32)])
    def test_a_choice_of_two_signs(self, value, bits):
        def binarize(x):
            return torch.where(x >= 0, torch.tensor(1.0), torch.tensor(value))

        _, report = rewritten(Lambda(lambda m, x: m[0](binarize(x)), subbit_conv()), X)
        assert report.layers[0].activation_bits == bits

    def test_signs_stay_packed(self):
        model = Lambda(lambda m, x: m[1](m[0](x.sign()).sign()), subbit_conv(), subbit_conv(seed=1))
        new, _ = rewritten(model, X)
        assert [layer.output for layer in layers(new)] == ["packed", "float"]

    def test_floats_stay_where_they_are_read(self):
        """Bi-Real net: x + conv(sign(x)), twice."""

        def forward(m, x):
            x = m[1](m[0](x.sign())) + x
            return m[3](m[2](x.sign())) + x

        model = Lambda(forward, subbit_conv(), norm(), subbit_conv(seed=1), norm(1))
        new, _ = rewritten(model, X)
        assert [layer.output for layer in layers(new)] == ["both", "float"]
        assert set(operators(new)) == {"<built-in function getitem>"}

    def test_shifts_before_the_sign(self):
        shift = torch.linspace(-1, 1, C)[:, None, None]

        def forward(m, x):
            y = F.relu(m[0](x.sign()))
            return m[1]((y + shift).sign()) + m[2]((y + shift).sign()) + y

        model = Lambda(forward, *(subbit_conv(seed=seed) for seed in range(3)))
        new, _ = rewritten(model, X)
        packing = [layer for layer in layers(new) if layer.output == "both"]
        assert len(packing) == 1
        torch.testing.assert_close(packing[0].pack_shift, shift.flatten())

    def test_the_published_training_code(self):
        """Its activations, shifts and weights, which it looks up in a table that it also keeps as an attribute."""

        class Shift(nn.Module):
            def __init__(self, seed):
                super().__init__()
                self.bias = nn.Parameter(integers(1, C, 1, 1, seed=seed) / 4)

            def forward(self, x):
                return x + self.bias.expand_as(x)

        class Activation(nn.Module):
            def forward(self, x):
                low, high = (x < 0).type(torch.float32), (x < 1).type(torch.float32)
                smooth = (x * x + 2 * x) * low + (2 * x - x * x) * (1 - low)
                smooth = smooth * high + 1 * (1 - high)
                return torch.sign(x).detach() - smooth.detach() + smooth

        class Conv(nn.Module):
            def __init__(self, seed):
                super().__init__()
                _, codebook = random_weight(UNIT_3X3, C, C, 16, seed)
                self.weight = nn.Parameter(torch.rand(C, C, 3, 3))
                self.table = nn.Module()
                self.table.patterns = nn.Parameter(codebook.flatten(1))
                self.table.memory = self.table.patterns.detach().sign()

            def forward(self, x):
                kept = (self.table.patterns.abs() >= 1e-3).to(torch.float32)
                self.table.memory = self.table.patterns.sign() * kept + self.table.memory.to(x.device) * (1 - kept)
                distances = torch.norm(self.weight.view(-1, 1, 9) - self.table.memory[None], dim=2)
                signs = self.table.memory[distances.argmin(1)].view(self.weight.shape)
                return F.conv2d(x, self.weight.abs().mean((1, 2, 3), keepdim=True).detach() * signs, padding=1)

        def forward(m, x):
            for shift, activation, conv, bn, before, prelu, behind in zip(*[iter(m)] * 7, strict=True):
                x = behind(prelu(before(bn(conv(activation(shift(x)))) + x)))
            return x

        blocks = [
            part
            for seed in range(2)
            for part in (Shift(seed), Activation(), Conv(seed), norm(seed), Shift(2), nn.PReLU(C), Shift(3))
        ]
        model = Lambda(forward, *blocks).eval()
        new, report = rewrite(capture(model, (X,)))
        assert [(r.name, r.activation_bits) for r in report.converted] == [("m.2", 1), ("m.9", 1)]
        assert [layer.output for layer in layers(new)] == ["both", "float"]
        left = [name for name in operators(new) if "sym_size" not in name]
        assert left == ["aten.expand.default", "aten.add.Tensor", *["<built-in function getitem>"] * 2]
        with torch.no_grad():
            torch.testing.assert_close(new(X), model(X), rtol=1e-5, atol=1e-4)

    def test_a_layer_that_takes_plus_one_for_zero(self):
        first = SubbitConv2d.from_dense(subbit_conv(), activation_bits=1)
        second = SubbitConv2d.from_dense(subbit_conv(seed=1), activation_bits=1, sign_zero=1)
        new, _ = rewritten(nn.Sequential(first, second), X)
        assert [(m.output, m.pack_sign_zero) for m in layers(new)] == [("packed", 1), ("float", 0)]

    def test_layers_that_are_sub_bit_already(self):
        model = nn.Sequential(SubbitConv2d.from_dense(subbit_conv(bias=True)), norm(), nn.ReLU())
        new, report = rewritten(model, X)
        assert [layer.name for layer in report.converted] == ["0"]
        assert layers(new)[0].activation == "relu"
        assert operators(new) == []

    def test_limits_around_zero_change_no_sign(self):
        stem = nn.Conv2d(C, C, 1)
        for limits, left in (((-1.0, 1.0), 0), ((-0.5, None), 0), ((0.0, 1.0), 1), ((-1.0, 0.0), 1)):
            model = Lambda(lambda m, x, limits=limits: m[1](m[0](x).clamp(*limits).sign()), stem, subbit_conv())
            new, _ = rewritten(model, X)
            assert sum("clamp" in name or "hardtanh" in name for name in operators(new)) == left
        model = Lambda(lambda m, x: (y := F.hardtanh(m[0](x)), m[1](y.sign()) + y)[1], stem, subbit_conv())
        assert sum("hardtanh" in name for name in operators(rewritten(model, X)[0])) == 1
