"""What a module computes is told from its calls, whatever it is; why it stays is said."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from dense_layers import agrees, conv, only_layer, subbit
from helpers import UNIT_3X3, dense_weight, integers, random_weight
from torch import nn

from subbit_infer.conversion.modules import swap
from subbit_infer.nn import SubbitConv2d, SubbitLinear


def why(model: nn.Module, *inputs) -> str:
    """Why the only layer was skipped; outputs are the same then."""
    converted, report = swap(model.eval(), inputs)
    entry = only_layer(report)
    assert not entry.is_converted
    assert not any(isinstance(m, SubbitConv2d | SubbitLinear) for m in converted.modules())
    return entry.why


class XnorConv(nn.Conv2d):
    """Signs inside, and alpha = mean|w| behind the sums."""

    def forward(self, x):
        alpha = self.weight.abs().mean(dim=(1, 2, 3))
        y = F.conv2d(x.sign(), self.weight.sign(), None, self.stride, self.padding)
        return y * alpha[:, None, None]


class BiasBehind(nn.Conv2d):
    def forward(self, x):
        return (self._conv_forward(x, self.weight, None).permute(0, 2, 3, 1) * 0.5 + self.bias).permute(0, 3, 1, 2)


class StandardizedConv(nn.Conv2d):
    """As in IR-Net: signs of the balanced weight times a power of two."""

    def forward(self, x):
        w = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        w = w / w.std(dim=(1, 2, 3), keepdim=True)
        scale = 2.0 ** w.abs().mean(dim=(1, 2, 3), keepdim=True).log2().round()
        return F.conv2d(torch.where(x >= 0, 1.0, -1.0), w.sign() * scale, self.bias, self.stride, self.padding)


class NearestCodewordConv(nn.Module):
    """As the published training code has it: signs by detached sums, and each kernel's nearest codeword."""

    def __init__(self, in_channels=8, out_channels=12):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.register_buffer("patterns", torch.randn(32, 9))

    def forward(self, x):
        codewords = self.patterns.sign()
        distances = torch.cdist(self.weight.reshape(-1, 9), codewords)
        nearest = codewords[distances.argmin(1)].reshape(self.weight.shape)
        alpha = self.weight.abs().mean(dim=(1, 2, 3), keepdim=True)
        clipped = self.weight.clamp(-1, 1)
        weight = (alpha * nearest).detach() - clipped.detach() + clipped
        soft = x.clamp(-1, 1)
        return F.conv2d(x.sign().detach() - soft.detach() + soft, weight, padding=1)


class InPlaceWeights(nn.Conv2d):
    """Binarizes its weight in place, computes, and puts it back."""

    def forward(self, x):
        kept = self.weight.data.clone()
        self.weight.data.sign_()
        y = super().forward(x)
        self.weight.data.copy_(kept)
        return y


class MatmulLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(subbit(12, 16, 1)[:, :, 0, 0] + 0.01)
        self.bias = nn.Parameter(torch.randn(12))

    def forward(self, x):
        return x @ self.weight.sign().t() + self.bias


def few_kernels(module):
    """Latent weights whose signs are few distinct kernels, though their magnitudes differ."""
    torch.manual_seed(0)
    weight = dense_weight(*random_weight(UNIT_3X3, *module.weight.shape[:2], 16))
    module.weight.data = weight * (torch.rand_like(weight) + 0.5)
    return module


def half_behind():
    module = BiasBehind(8, 12, 3)
    module.weight.data = subbit(12, 8)
    return module


CUSTOM = [
    pytest.param(lambda: few_kernels(XnorConv(8, 12, 3, padding=1)), 1, 0, (2, 8, 9, 9), True, id="XNOR"),
    pytest.param(lambda: StandardizedConv(8, 12, 3), 1, 1, (2, 8, 9, 9), False, id="IR-Net"),
    pytest.param(NearestCodewordConv, 1, 0, (2, 8, 9, 9), False, id="published"),
    pytest.param(lambda: few_kernels(InPlaceWeights(8, 12, 3)), 32, 0, (2, 8, 9, 9), False, id="in-place-weights"),
    pytest.param(MatmulLayer, 32, 0, (5, 16), False, id="matmul"),
    pytest.param(MatmulLayer, 32, 0, (2, 3, 16), False, id="matmul-3d"),
    pytest.param(half_behind, 32, 0, (2, 8, 9, 9), False, id="bias-behind"),
]


@pytest.mark.parametrize(("make", "bits", "sign_zero", "shape", "exactly"), CUSTOM)
def test_modules_that_compute_their_weights(make, bits, sign_zero, shape, exactly):
    torch.manual_seed(1)
    module = make()
    converted, report = swap(nn.Sequential(module, nn.Flatten()), integers(*shape))
    layer = converted[0]
    assert isinstance(layer, SubbitConv2d | SubbitLinear)
    assert (layer.activation_bits, layer.sign_zero) == (bits, sign_zero)
    assert only_layer(report).name == "0"
    agrees(module, layer, integers(*shape, seed=1), exactly=exactly)


def test_a_factor_behind_the_sums_is_told():
    report = swap(few_kernels(XnorConv(8, 12, 3)), integers(1, 8, 5, 5)).report
    assert only_layer(report).why == "holds the factor after it"
    report = swap(half_behind(), integers(1, 8, 5, 5)).report
    assert only_layer(report).why == "holds the factor and offset after it"


class Sign(nn.Module):
    def __init__(self, compute=torch.sign):
        super().__init__()
        self.compute = compute

    def forward(self, x):
        return self.compute(x)


@pytest.mark.parametrize(
    "compute",
    [
        torch.sign,
        lambda x: torch.where(x >= 0, 1.0, -1.0),
        lambda x: (x > 0).float(),
        lambda x: (x.sign() + x).detach() - x,  # off by rounding
    ],
)
def test_signs_from_a_module_in_front(compute):
    model = nn.Sequential(Sign(compute), conv(padding=1))
    x = integers(2, 8, 7, 7) / 3
    converted, report = swap(model, x)
    assert only_layer(report).activation_bits == 1
    assert (converted[1].activation_bits, converted[1].sign_zero) == (1, 0)
    agrees(model, converted, x, exactly=False)


def test_inputs_that_happen_to_be_signs_are_floats():
    model = nn.Sequential(nn.Identity(), conv())
    x = integers(2, 8, 7, 7).sign()
    assert only_layer(swap(model, x).report).activation_bits == 32
    model = nn.Sequential(Sign(lambda x: x.sign() * 0.5), conv())
    assert only_layer(swap(model, x).report).activation_bits == 32


def test_a_sign_of_minus_one_for_zero_is_refused():
    class Odd(nn.Conv2d):
        def forward(self, x):
            return super().forward(torch.where(x > 0, 1.0, -1.0))

    module = Odd(8, 12, 3)
    module.weight.data = subbit(12, 8)
    assert why(module, torch.randn(1, 8, 5, 5)) == "it takes -1 for the sign of 0"


@pytest.mark.parametrize("around", ["relu", "hardtanh", "shift", "pad"])
def test_what_lies_beside_the_convolution_is_seen_even_where_the_input_does_not_reach_it(around):
    class Around(nn.Conv2d):
        def forward(self, x):
            if around == "shift":
                return super().forward((x + 1e-4).sign())
            x = {"relu": x.relu(), "hardtanh": F.hardtanh(x), "pad": F.pad(x, (1, 1, 1, 1))}[around]
            return super().forward(x)

    module = Around(8, 12, 3)
    module.weight.data = subbit(12, 8)
    x = integers(1, 8, 5, 5).abs() / 8 + 0.01
    assert why(module, x) == "its conv2d sees neither the module's input nor the sign of it"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("behind", [torch.relu, torch.tanh, lambda y: y.flatten(1), lambda y: (y,), lambda y: y + y**2])
def test_what_lies_behind(behind, batch):
    class Behind(nn.Conv2d):
        def forward(self, x):
            return behind(super().forward(x))

    module = Behind(8, 1, 3)
    module.weight.data = subbit(1, 8).abs()
    text = why(module, integers(batch, 8, 3, 3).abs() + 1)
    assert text == "its module does more than the conv2d; convert(fold=True) rewrites the graph instead"


class Block(nn.Module):
    """Convolutions that are no modules, around one that is."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", subbit(8, 8))
        self.conv = conv(8)

    def forward(self, x):
        y = F.conv2d(x, self.weight, padding=1)
        y = F.conv2d(self.conv(y), torch.ones(8, 8, 5, 5))
        return F.linear(y, torch.ones(5, y.shape[-1]))


def test_calls_in_a_module_that_does_more():
    model = nn.Sequential(Block())
    x = integers(1, 8, 9, 9)
    converted, report = swap(model, x)
    found = {entry.name: entry.why for entry in report.layers}
    assert list(found) == ["0.conv", "0.conv2d", "0.conv2d_1", "0.linear"]
    assert found["0.conv"] == ""
    assert "does more" in found["0.conv2d"]
    assert found["0.conv2d_1"] == "no kernels for 5x5 units"
    agrees(model, converted, x)


def test_a_module_that_is_called_in_other_ways_stays():
    class Twice(nn.Module):
        def __init__(self, change):
            super().__init__()
            self.conv, self.change = conv(8, padding=1), change

        def forward(self, x):
            y = self.conv(x)
            self.change(self.conv)
            return self.conv(y)

    def other_padding(module):
        module.padding = (0, 0)

    def other_weight(module):
        module.weight.data = module.weight.data * 2

    x = integers(1, 8, 5, 5)
    assert why(Twice(other_padding), x) == "its calls differ in stride, padding, dilation or groups"
    assert "its output differs by" in why(Twice(other_weight), x)


def test_hooks_are_not_lost():
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        module = conv()
        getattr(module, register)(lambda *args: None)
        assert why(module, integers(1, 8, 5, 5)) == "it has forward hooks, which would be lost"
        (entry,) = swap(module).report.layers
        assert entry.why == "it has forward hooks, which would be lost"


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.jit.script(conv())

    def forward(self, x):
        return self.inner(x) * self.inner(x)


class Fragile(nn.Conv2d):
    def forward(self, x):
        if (x < 0).any():
            raise RuntimeError("no negative numbers")
        return super().forward(x)


def fragile():
    module = Fragile(8, 12, 3)
    module.weight.data = subbit(12, 8)
    return module


class Binary(nn.Conv2d):
    def forward(self, x, scale):
        return super().forward(x) * scale


def binary():
    module = Binary(8, 12, 3)
    module.weight.data = subbit(12, 8)
    return module


class InPlaceInput(nn.Conv2d):
    def forward(self, x):
        return super().forward(x.sign_())


def in_place_input():
    module = InPlaceInput(8, 12, 3)
    module.weight.data = subbit(12, 8)
    return nn.Sequential(nn.Identity(), module)


@pytest.mark.parametrize(
    ("make", "inputs", "reason"),
    [
        (lambda: nn.Conv2d(8, 12, 3), (integers(1, 8, 5, 5),), "magnitudes from"),
        (lambda: conv(padding=1, padding_mode="circular"), (integers(1, 8, 5, 5),), "its padding_mode is 'circular'"),
        (lambda: conv().double(), (integers(1, 8, 5, 5).double(),), "weights are float64"),
        (binary, (integers(1, 8, 5, 5), torch.tensor(2.0)), "other arguments than one tensor"),
        (fragile, (integers(1, 8, 5, 5).abs(),), "does not take the random input .* no negative numbers"),
        (in_place_input, (integers(1, 8, 5, 5),), "it changes its input in place"),
        (conv, (torch.zeros(0, 8, 5, 5),), "its input is empty"),
    ],
)
def test_why_a_layer_is_skipped(make, inputs, reason):
    assert re.search(reason, why(make(), *inputs))


def test_code_in_a_script_module():
    report = swap(Scripted(), integers(1, 8, 5, 5)).report
    assert {entry.why for entry in report.layers} == {"it may be in a ScriptModule, which cannot be watched"}


def test_what_is_no_2d_convolution_is_not_listed():
    model = nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.Flatten(2), nn.Conv1d(4, 4, 3))
    assert swap(model, torch.randn(1, 4, 5, 5)).report.layers == ()


def test_a_layer_that_is_not_called_is_listed():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle, self.used = conv(), conv()

        def forward(self, x):
            return self.used(x)

    report = swap(Idle(), integers(1, 8, 5, 5)).report
    assert [(entry.name, entry.why) for entry in report.skipped] == [("idle", "it is not called with this input")]
    assert [entry.name for entry in report.converted] == ["used"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model = nn.Sequential(conv(bias=True), nn.ReLU(), conv(8, 12)).to(dtype)
    x = integers(1, 8, 7, 7).to(dtype)
    converted, report = swap(model, x)
    assert len(report.converted) == 2
    torch.testing.assert_close(converted(x), model(x), rtol=0.02, atol=0.5)


class NormInside(nn.Conv2d):
    def __init__(self):
        super().__init__(8, 12, 3)
        self.weight.data = subbit(12, 8)
        self.norm = nn.BatchNorm2d(12)
        self.norm.weight.data = torch.linspace(-1, 1, 12)
        self.norm.running_mean.uniform_(-3, 3)

    def forward(self, x):
        return self.norm(super().forward(x))


def test_factors_behind_may_be_negative():
    model = nn.Sequential(NormInside()).eval()
    x = integers(2, 8, 6, 6)
    converted, report = swap(model, x)
    assert only_layer(report).why == "holds the factor and offset after it"
    agrees(model, converted, x, exactly=False)


def test_a_factor_that_depends_on_the_input_stays():
    class Xnor(XnorConv):
        def forward(self, x):
            return super().forward(x) * x.abs().mean()

    assert "its output differs by" in why(few_kernels(Xnor(8, 12, 3)), integers(1, 8, 9, 9))


@pytest.mark.parametrize("signs_last", [False, True])
def test_activations_are_binary_only_where_every_call_has_signs(signs_last):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv(8, padding=1)

        def forward(self, x):
            if signs_last:
                return self.conv(self.conv(x).sign())
            return self.conv(self.conv(x.sign()))

    model = Twice()
    x = integers(1, 8, 5, 5)
    converted, report = swap(model, x)
    assert only_layer(report).activation_bits == converted.conv.activation_bits == 32
    agrees(model, converted, x)


def test_a_weight_that_depends_on_the_input_stays():
    class Dynamic(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight * torch.where(x.amin() < 0, -1, 1))

    module = Dynamic(8, 12, 3)
    module.weight.data = subbit(12, 8)
    assert "its output differs by" in why(module, integers(1, 8, 9, 9).abs())


def test_signs_that_are_off_by_rounding():
    class Detached(nn.Conv2d):
        def forward(self, x):
            return super().forward((x.sign() + x) - x)

    module = Detached(8, 12, 3)
    module.weight.data = subbit(12, 8)
    x = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    assert not torch.equal((x.sign() + x) - x, x.sign())
    converted, _ = swap(module, x)
    assert converted.activation_bits == 1
    agrees(module, converted, x, exactly=False)


def test_a_module_that_only_holds_the_weight_goes_with_the_one_around_it():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = conv()

        def forward(self, x):
            return F.conv2d(x.sign(), self.inner.weight, padding=1)

    model = nn.Sequential(Around())
    converted, report = swap(model, integers(1, 8, 5, 5))
    assert only_layer(report).name == "0"
    assert isinstance(converted[0], SubbitConv2d)
    agrees(model, converted, integers(1, 8, 5, 5))
