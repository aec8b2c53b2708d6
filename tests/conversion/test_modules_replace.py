"""Modules that compute a sub-bit layer are replaced, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from dense_layers import agrees, conv, linear, only_layer
from helpers import integers
from torch import nn
from torch.nn.utils import parametrize

from subbit_infer import models
from subbit_infer.conversion.modules import swap
from subbit_infer.nn import SubbitConv2d, SubbitLinear

NETWORKS = [
    pytest.param(models.resnet18, 32, 16, 64, id="resnet18-A32"),
    pytest.param(models.resnet18, 1, 16, 64, id="resnet18-A1"),
    pytest.param(models.resnet34, 1, 32, 32, id="resnet34-A1"),
    pytest.param(models.resnet50, 32, 48, 32, id="resnet50-A32"),
    pytest.param(models.vgg_small, 32, 5, 32, id="vgg_small-A32"),
    pytest.param(models.vgg_small, 1, 5, 32, id="vgg_small-A1"),
    pytest.param(lambda bits: models.reactnet18(), 1, 16, 64, id="reactnet18"),
]


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
    model = nn.Sequential(nn.ReLU(), conv(), nn.Flatten(), nn.Linear(12 * 9, 4))
    text = str(swap(model, integers(1, 8, 5, 5)).report)
    assert "1 of 2 layers converted." in text
    assert "skipped: 108 input channels do not divide into units of 8" in text
