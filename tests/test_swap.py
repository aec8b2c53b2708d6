"""Modules that compute a sub-bit layer are replaced, whatever they are; all others stay, and why is said."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, integers, random_weight
from torch import nn
from torch.nn.utils import parametrize

from subbit_infer import models
from subbit_infer.nn import SubbitConv2d, SubbitLinear
from subbit_infer.swap import swap

NETWORKS = [
    pytest.param(models.resnet18, 32, 16, 64, id="resnet18-A32"),
    pytest.param(models.resnet18, 1, 16, 64, id="resnet18-A1"),
    pytest.param(models.resnet34, 1, 32, 32, id="resnet34-A1"),
    pytest.param(models.resnet50, 32, 48, 32, id="resnet50-A32"),
    pytest.param(models.vgg_small, 32, 5, 32, id="vgg_small-A32"),
    pytest.param(models.vgg_small, 1, 5, 32, id="vgg_small-A1"),
    pytest.param(lambda bits: models.reactnet18(), 1, 16, 64, id="reactnet18"),
]


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


def why(model: nn.Module, *inputs) -> str:
    """Why the only layer was skipped; outputs are the same then."""
    converted, report = swap(model.eval(), inputs)
    entry = only_layer(report)
    assert not entry.is_converted
    assert not any(isinstance(m, SubbitConv2d | SubbitLinear) for m in converted.modules())
    return entry.why


@pytest.mark.parametrize(("make", "bits", "layers", "side"), NETWORKS)
def test_networks(make, bits, layers, side):
    dense = make(bits)
    models.make_subbit_weights(dense, 5)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    models.calibrate(dense, images)
    converted, report = swap(dense, images)
    agrees(dense, converted, images, exactly=bits == 1)
    assert [entry.name for entry in report.converted] == [name for name, _ in models.body_convs(dense)]
    assert len(report.converted) == layers
    for entry in report.converted:
        layer = converted.get_submodule(entry.name)
        assert isinstance(layer, SubbitConv2d)
        assert entry.shape == tuple(dense.get_submodule(entry.name).weight.shape)
        assert (entry.activation_bits, layer.activation_bits) == (bits, bits)
        assert entry.nbytes == layer.packed_weight().nbytes
        assert entry.tau == layer.tau <= 5
    assert {entry.name for entry in report.skipped} >= {"fc"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True},
        {"stride": 2, "padding": (1, 0)},
        {"padding": "same"},
        {"padding": "same", "dilation": (2, 3)},
        {"padding": "valid"},
        {"groups": 4, "padding": 1},
        {"groups": 8, "out_channels": 8, "dilation": 2},
        {"kernel": 1, "in_channels": 16, "stride": (1, 2)},
    ],
)
@pytest.mark.parametrize("batch", [(2,), ()])
def test_geometry(options, batch):
    module = conv(**options)
    x = integers(*batch, module.in_channels, 9, 11)
    converted, report = swap(module, x)
    assert isinstance(converted, SubbitConv2d)
    assert only_layer(report).name == "Conv2d"
    agrees(module, converted, x)


@pytest.mark.parametrize("shape", [(16,), (1, 16), (5, 16), (2, 3, 16)])
def test_linear(shape):
    module = linear()
    converted, report = swap(module, integers(*shape))
    assert isinstance(converted, SubbitLinear)
    assert only_layer(report).shape == (12, 16)
    agrees(module, converted, integers(*shape), exactly=False)


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
    assert only_layer(report).why == "holds the factor behind it"
    report = swap(half_behind(), integers(1, 8, 5, 5)).report
    assert only_layer(report).why == "holds the factor and offset behind it"


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
        lambda x: x.sign().detach() - x.clamp(-1, 1).detach() + x.clamp(-1, 1),
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


class Negated(nn.Module):
    def forward(self, weight):
        return -2 * weight


def parametrized():
    module = conv(padding=1)
    parametrize.register_parametrization(module, "weight", Negated())
    return module


@pytest.mark.parametrize("example", [True, False])
def test_parametrized(example):
    model = nn.Sequential(parametrized())
    x = integers(1, 8, 5, 5)
    converted, report = swap(model, x if example else None)
    assert isinstance(converted[0], SubbitConv2d)
    assert only_layer(report).is_converted
    agrees(model, converted, x)
    assert parametrize.is_parametrized(model[0])


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = conv(8, padding=1)
        self.again = self.first
        self.inner = nn.Sequential(nn.ReLU(), self.first)

    def forward(self, x):
        return self.inner(self.again(self.first(x).sign()))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_module_under_several_names_becomes_one_layer_under_all(in_place):
    model = Shared()
    x = integers(1, 8, 5, 5)
    with torch.no_grad():
        expected = model(x)
    converted, report = swap(model, x, in_place=in_place)
    assert isinstance(converted.first, SubbitConv2d)
    assert converted.first is converted.again
    assert converted.first is converted.inner[1]
    assert only_layer(report).activation_bits == 32  # one of its inputs is signs, the others are not
    assert torch.equal(converted(x), expected)


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


def test_a_layer_whose_weight_other_code_reads_stays():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = conv(8), conv(8)

        def forward(self, x):
            return self.second(self.first(x.to(self.first.weight.dtype)))

    model = Reads()
    x = integers(1, 8, 7, 7)
    converted, report = swap(model, x)
    assert isinstance(converted.second, SubbitConv2d)
    assert [(entry.name, entry.why) for entry in report.skipped] == [("first", "code outside of it reads its weight")]
    agrees(model, converted, x)


def test_a_layer_that_other_code_holds_stays():
    """As what torch.compile wraps does."""

    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = conv(8), conv(8)
            self.parts = [self.first]

        def forward(self, x):
            return self.second(self.parts[0](x))

    report = swap(Holds(), integers(1, 8, 7, 7)).report
    assert [(entry.name, entry.why) for entry in report.skipped] == [
        ("first", "code outside of it holds the old module")
    ]
    assert [entry.name for entry in report.converted] == ["second"]


def test_subbit_layers_are_left_alone():
    once, _ = swap(nn.Sequential(conv(), nn.ReLU(), conv(8, 12)), integers(1, 8, 7, 7))
    twice, report = swap(once, integers(1, 8, 7, 7))
    assert report.layers == ()
    agrees(once, twice, integers(1, 8, 7, 7))


def test_lazy_modules():
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), conv(8, 4))
    x = torch.randn(1, 3, 7, 7)
    converted, report = swap(lazy, x)
    assert isinstance(converted[1], SubbitConv2d)
    assert isinstance(converted[0], nn.LazyConv2d)
    assert isinstance(lazy[0], nn.LazyConv2d)
    assert len(report.converted) == 1
    assert len(swap(lazy).report.converted) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model = nn.Sequential(conv(bias=True), nn.ReLU(), conv(8, 12)).to(dtype)
    x = integers(1, 8, 7, 7).to(dtype)
    converted, report = swap(model, x)
    assert len(report.converted) == 2
    torch.testing.assert_close(converted(x), model(x), rtol=0.02, atol=0.5)


def test_outputs_of_any_kind():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(), conv()

        def forward(self, x, *, scale=1):
            return {"a": self.a(x), "rest": (self.b(x), scale)}

    model = Heads()
    x = integers(1, 8, 7, 7)
    converted, report = swap(model, (x,))
    assert len(report.converted) == 2
    assert torch.equal(converted(x)["a"], model(x)["a"])
    assert torch.equal(converted(x)["rest"][0], model(x)["rest"][0])


class Stateful(nn.Module):
    """Changes itself and its input, and draws random numbers, whenever it runs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.norm = nn.BatchNorm2d(8)
        self.conv = conv()
        self.rest = nn.ModuleList([conv(), nn.Dropout()])

    def forward(self, x):
        self.calls += 1
        torch.rand(1)
        x += 1
        return self.conv(self.norm(x))


@pytest.mark.parametrize("in_place", [False, True])
def test_the_model_and_all_around_it_stays_as_it_was(in_place):
    model = Stateful().train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    modules = dict(model.named_modules())
    state = copy.deepcopy(model.state_dict())
    modes = {name: m.training for name, m in modules.items()}
    grads = {name: p.requires_grad for name, p in model.named_parameters()}
    x = integers(2, 8, 7, 7)
    random_state = torch.get_rng_state()
    converted, report = swap(model, x, in_place=in_place)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(x, integers(2, 8, 7, 7))
    assert (converted is model) == in_place
    assert len(report.converted) == 1
    assert {name: m.training for name, m in converted.named_modules()} == modes
    assert not any(map(any, map(hooks_of, converted.modules())))
    assert torch.equal(converted.calls, torch.zeros(()))
    assert converted.rest[0].weight.requires_grad
    assert not any(p.requires_grad for p in converted.conv.parameters())
    if not in_place:
        assert dict(model.named_modules()) == modules
        assert {name: p.requires_grad for name, p in model.named_parameters()} == grads
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert not any(map(any, map(hooks_of, model.modules())))
        assert converted.norm is not model.norm
        assert converted.norm.running_mean.data_ptr() != model.norm.running_mean.data_ptr()


def hooks_of(module):
    return module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_always_called


class Stubborn(nn.Module):
    """A part that cannot be replaced."""

    def __init__(self):
        super().__init__()
        self.part = conv(8)

    def __setattr__(self, name, value):
        if isinstance(value, SubbitConv2d):
            raise RuntimeError("not with me")
        super().__setattr__(name, value)

    def forward(self, x):
        return self.part(x)


def test_a_failure_leaves_the_model_as_it_was():
    model = nn.Sequential(conv(8), Stubborn())
    modules = dict(model.named_modules())
    x = integers(1, 8, 7, 7)
    for example in (x, None):
        with pytest.raises(RuntimeError, match="not with me"):
            swap(model, example, in_place=True)
        assert dict(model.named_modules()) == modules
    with pytest.raises(ValueError, match=r"^example_input must be an input of Sequential: "):
        swap(model, torch.randn(1, 3, 7, 7), in_place=True)
    assert dict(model.named_modules()) == modules
    assert not any(map(any, map(hooks_of, model.modules())))


def test_the_model_itself_is_not_replaced_in_place():
    module = conv()
    converted, report = swap(module, integers(1, 8, 5, 5), in_place=True)
    assert converted is module
    assert only_layer(report).why == "it is the model itself, which cannot be changed in place"


def test_without_an_example_input():
    model = nn.Sequential(conv(bias=True), models.vgg_small().features[3], linear(), nn.Linear(3, 3), nn.ReLU())
    model.append(conv(padding_mode="reflect", padding=1))
    converted, report = swap(model)
    assert [entry.name for entry in report.converted] == ["0", "2"]
    assert [entry.activation_bits for entry in report.converted] == [32, 32]
    reasons = [entry.why for entry in report.skipped]
    assert reasons[0] == "what a BodyConv2d computes is seen with an example_input only"
    assert reasons[1].startswith("magnitudes from") or "divide" in reasons[1]
    assert reasons[2] == "its padding_mode is 'reflect'"
    (note,) = report.notes
    assert "example_input" in note
    agrees(model[0], converted[0], integers(1, 8, 5, 5))
    agrees(model[2], converted[2], integers(3, 16), exactly=False)
    assert swap(model, in_place=True).model is model
    assert isinstance(model[0], SubbitConv2d)


def test_what_cannot_be_swapped():
    with pytest.raises(TypeError, match=r"^model must be a torch.nn.Module .*, got int$"):
        swap(3)
    with pytest.raises(TypeError, match="ScriptModule"):
        swap(torch.jit.script(conv()), integers(1, 8, 5, 5))
    with pytest.raises(TypeError, match=r"^example_input must be an input of Conv2d: "):
        swap(conv(), (integers(1, 8, 5, 5), 2, 3))
    module = conv()
    module.kept = torch.ones(2, requires_grad=True) * 2
    with pytest.raises(ValueError, match=r"^model must be a module that copy.deepcopy can copy: "):
        swap(module)


def test_a_model_that_does_not_run_with_its_new_layers():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv()

        def forward(self, x):
            if not isinstance(self.conv, nn.Conv2d):
                raise RuntimeError("a Conv2d is needed")
            return self.conv(x)

    model = Asks()
    with pytest.raises(ValueError, match=r"^model does not run with its new layers: a Conv2d is needed$"):
        swap(model, integers(1, 8, 5, 5), in_place=True)
    assert isinstance(model.conv, nn.Conv2d)


def test_the_report_is_a_table():
    model = nn.Sequential(Sign(), conv(), nn.Flatten(), nn.Linear(12 * 9, 4))
    text = str(swap(model, integers(1, 8, 5, 5)).report)
    assert "1 of 2 layers converted." in text
    assert "skipped: 108 input channels do not divide into units of 8" in text
