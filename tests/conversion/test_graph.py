"""Graphs: what is found, what is folded, and that the numbers stay."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, integers, random_weight
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from subbit_infer import models
from subbit_infer.conversion.graph import capture, rewrite, rewrite_program
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


class TestFind:
    @pytest.mark.parametrize("folds", [False, True])
    @pytest.mark.parametrize("kernel", [1, 3])
    def test_a_convolution(self, kernel, folds):
        new, report = rewritten(nn.Sequential(subbit_conv(kernel=kernel, bias=True)), X, folds)
        assert [(r.name, r.tau, r.activation_bits, r.has_scale) for r in report.layers] == [("0", 4, 32, True)]
        assert isinstance(new.get_submodule("0"), SubbitConv2d)
        assert not [name for name in operators(new) if "conv" in name]

    def test_geometry(self):
        conv = subbit_conv(stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2)
        (layer,) = layers(rewritten(conv, X)[0])
        assert (layer.stride, layer.padding, layer.dilation, layer.groups) == ((2, 1), (2, 1), (1, 2), 2)

    @pytest.mark.parametrize("padding", ["same", "valid"])
    def test_padding_by_name(self, padding):
        rewritten(nn.Sequential(subbit_conv(padding=padding), nn.ReLU()), X)

    def test_linear(self):
        linear = nn.Linear(C, 24)
        linear.weight.data = 0.25 * dense_weight(*random_weight(UNIT_1X1, 24, 2, 16))[:, :, 0, 0]
        model = Lambda(lambda m, x: F.relu(m[0](x.mean((2, 3)))), linear)
        new, report = rewritten(model, X)
        (layer,) = layers(new)
        assert isinstance(layer, SubbitLinear)
        assert layer.activation == "relu"
        assert report.layers[0].shape == (24, C)

    def test_what_computes_its_weight(self):
        """As training code does: alpha times sign, with the gradient of another function."""

        class Binary(nn.Conv2d):
            def forward(self, x):
                alpha = self.weight.abs().mean((1, 2, 3), keepdim=True).detach()
                signs, smooth = alpha * self.weight.sign(), self.weight.clamp(-1, 1)
                return F.conv2d(x, signs.detach() - smooth.detach() + smooth, None, self.stride, self.padding)

        conv = Binary(C, C, 3, padding=1)
        conv.weight.data = dense_weight(*random_weight(UNIT_3X3, C, C, 16)) * torch.rand(C, C, 1, 1)
        new, report = rewritten(nn.Sequential(conv), X)
        assert [r.name for r in report.converted] == ["0"]
        assert not [name for name in operators(new) if "sign" in name or "clamp" in name]

    def test_why_not(self):
        model = nn.Sequential(nn.Conv2d(C, C, 3), nn.Conv2d(C, C, 5), subbit_conv())
        _, report = rewritten(model, X)
        assert "magnitudes" in report.layers[0].why
        assert "5x5" in report.layers[1].why
        assert report.layers[2].is_converted
        assert "skipped: no kernels for 5x5 units" in str(report)

    def test_a_weight_that_depends_on_the_input(self):
        model = Lambda(lambda m, x: F.conv2d(x, x[:1, :, :3, :3].sign(), padding=1))
        _, report = rewritten(model, X)
        assert report.layers[0].why == "its weight depends on the input"

    def test_shared_weights_are_shared(self):
        conv = subbit_conv()
        new, report = rewritten(Lambda(lambda m, x: m[1](m[0](m[0](x))), conv, norm()), X)
        first, second = layers(new)
        assert [r.name for r in report.layers] == ["m.0", "m.0_2"]
        assert first.packed_indices.data_ptr() == second.packed_indices.data_ptr()
        assert first.bias is None
        assert second.bias is not None

    def test_a_parameter_that_is_read_elsewhere_stays(self):
        model = Lambda(lambda m, x: m[0](x) + m[0].weight.sum(), subbit_conv())
        rewritten(model, X)

    def test_decomposed_programs(self):
        model = nn.Sequential(subbit_conv(bias=True), norm(), nn.ReLU(), nn.Flatten(), nn.Linear(C * 64, 8)).eval()
        model[4].weight.data = dense_weight(*random_weight(UNIT_1X1, 8, C * 8, 16))[:, :, 0, 0]
        program = torch.export.export(model, (X,)).run_decompositions()
        new, report = rewrite_program(program, folds=True)
        assert len(report.converted) == 2
        with torch.no_grad():
            torch.testing.assert_close(new.module()(X), model(X), rtol=1e-5, atol=1e-3)


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


class TestDense:
    def test_what_stays_dense(self):
        model = nn.Sequential(nn.Conv2d(3, C, 7, 2, 3), norm(), nn.ReLU(), nn.MaxPool2d(3, 2, 1), subbit_conv())
        new, _ = rewritten(model, torch.randn(2, 3, 32, 32))
        assert operators(new) == [f"aten.{name}.default" for name in ("conv2d", "max_pool2d", "relu", "contiguous")]

    def test_strided_pointwise_convolutions(self):
        model = nn.Sequential(nn.Conv2d(C, 32, 1, (2, 3)), nn.Conv2d(32, C, 1, 2, 1), subbit_conv())
        rewritten(model, torch.randn(2, C, 33, 31))

    def test_a_norm_of_two_readers(self):
        model = Lambda(lambda m, x: (m[1](m[0](x)), m[0](x).sum(1)), nn.Conv2d(C, C, 3), norm())
        rewritten(model, X)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (models.resnet18, {"activation_bits": 32}),
        (models.resnet18, {"activation_bits": 1}),
        (models.resnet50, {"activation_bits": 32}),
        (models.vgg_small, {"activation_bits": 1}),
        (models.reactnet18, {}),
    ],
)
def test_networks(make, options):
    model = make(**options)
    models.make_subbit_weights(model)
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    models.calibrate(model, images)  # with two of them, variances of last layers' single pixels are near 0
    x = images[:2]
    new, report = rewrite(capture(model, (x,)))
    by_hand = models.to_subbit(model)
    assert len(layers(new)) == len(layers(by_hand)) == len(report.converted)
    with torch.no_grad():
        expected = model(x)
        # Random networks magnify rounding: ResNet-50 to 7e-5 of the largest output.
        torch.testing.assert_close(new(x), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


class TestPrograms:
    def program(self, model, *inputs, **options):
        return torch.export.export(model.eval(), inputs, **options)

    @pytest.mark.parametrize("folds", [False, True])
    def test_a_file_in_a_fresh_process(self, tmp_path, folds):
        model = nn.Sequential(subbit_conv(), norm(), nn.ReLU(), subbit_conv(seed=1)).eval()
        batch = torch.export.Dim("batch", min=1, max=64)
        new, _ = rewrite_program(self.program(model, X, dynamic_shapes=({0: batch},)), folds=folds)
        torch.export.save(new, tmp_path / "new.pt2")
        with torch.no_grad():
            torch.save((X, model(X)), tmp_path / "xy.pt")
        code = textwrap.dedent(f"""
            import torch, subbit_infer
            program = torch.export.load({str(tmp_path / "new.pt2")!r})
            assert sum("subbit_infer.conv2d" in str(n.target) for n in program.graph.nodes) == 2
            x, y = torch.load({str(tmp_path / "xy.pt")!r})
            with torch.no_grad():
                for module in (program.module(), torch.compile(program.module(), fullgraph=True, backend="aot_eager")):
                    torch.testing.assert_close(module(x), y, rtol=1e-5, atol=1e-4)
                    assert module(x[:1]).shape[0] == 1
                    assert module(torch.cat([x, x, x])).shape[0] == 6
        """)
        subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=tmp_path)  # not the source tree

    def test_ahead_of_time(self, tmp_path):
        """AOTInductor makes a package of it, which calls the operators that this package registers."""
        model = nn.Sequential(subbit_conv(), norm(), nn.ReLU(), subbit_conv(seed=1)).eval()
        batch = torch.export.Dim("batch", min=1, max=64)
        new, _ = rewrite_program(self.program(model, X, dynamic_shapes=({0: batch},)), folds=True)
        path = torch._inductor.aoti_compile_and_package(new, package_path=str(tmp_path / "new.pt2"))
        package = torch._inductor.aoti_load_package(path)
        with torch.no_grad():
            for images in (X, X[:1], torch.cat([X, X, X])):
                torch.testing.assert_close(package(images), model(images), rtol=1e-5, atol=1e-3)

    def test_its_signature_stays(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = subbit_conv()

            def forward(self, images, factor, *, mask=None):
                return {"y": self.conv(images) * factor, "rest": (mask + 1,)}

        model = Model()
        args, kwargs = (X, torch.tensor(2.0)), {"mask": torch.ones(3)}
        program = torch.export.export(
            model, args, kwargs, dynamic_shapes={"images": {0: torch.export.Dim("n")}, "factor": None, "mask": None}
        )
        new, report = rewrite_program(program, folds=True)
        assert len(report.converted) == 1
        with torch.no_grad():
            y = new.module()(*args, **kwargs)
            expected = model(*args, **kwargs)
            torch.testing.assert_close(y, expected)
            assert new.module()(X[:1], torch.tensor(1.0), mask=torch.ones(3))["y"].shape[0] == 1

    def test_fixed_sizes_stay_fixed(self):
        new, _ = rewrite_program(self.program(nn.Sequential(subbit_conv()), X))
        with pytest.raises(Exception, match=r"Guard failed|shape"):
            new.module()(X[:1])

    def test_nothing_to_do(self):
        program = self.program(nn.Conv2d(C, C, 3), X)
        new, report = rewrite_program(program)
        assert new is program
        assert report.converted == ()


class TestCapture:
    def test_what_cannot_be_traced(self):
        class Branch(nn.Module):
            def forward(self, x):
                return x if x.sum() > 0 else -x

        with pytest.raises(ValueError, match=r"torch\.export must be able to trace Branch"):
            capture(Branch(), (X,))

    def test_a_batch_of_one_is_not_all_there_is(self):
        new, _ = rewrite(capture(nn.Sequential(subbit_conv()), (X[:1],)))
        assert new(X).shape[0] == 2

    def test_the_result_can_be_copied_and_put_to_eval(self):
        new, _ = rewrite(capture(nn.Sequential(subbit_conv(), norm()).eval(), (X,)))
        assert torch.equal(copy.deepcopy(new).eval()(X), new(X))

    def test_sizes_are_checked_though_not_at_every_call(self):
        """Sizes that have just passed the checks are not checked again; others are."""
        linear = nn.Linear(C * 64, 4)
        model = Lambda(lambda m, x: m[1](m[0](x).flatten(1)), subbit_conv(), linear)
        new, _ = rewrite(capture(model.eval(), (X,)))
        with torch.no_grad():
            for _ in range(2):
                for images in (X, X, X[:1]):
                    torch.testing.assert_close(new(images), model(images), rtol=1e-4, atol=1e-4)
                    with pytest.raises(AssertionError, match="Guard failed"):
                        new(torch.cat([images, images], 2))

    def test_a_signature_of_trees_stays(self):
        class Trees(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = subbit_conv()

            def forward(self, pair, *, scale):
                return {"sum": self.conv(pair[0]) + pair[1] * scale}

        model = Trees().eval()
        program = torch.export.export(model, ((X, X),), {"scale": X})
        new, _ = rewrite_program(program)
        with torch.no_grad():
            torch.testing.assert_close(
                new.module()((X, X), scale=X)["sum"], model((X, X), scale=X)["sum"], rtol=1e-5, atol=1e-4
            )
