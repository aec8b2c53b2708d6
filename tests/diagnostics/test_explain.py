"""What explain says: that it is what runs, what it prints, and that the model is left as it was."""

from __future__ import annotations

import json
import re

import pytest
import torch
from helpers import LEVELS, MACHINE_LEVELS, UNIT_1X1, UNIT_3X3, integers, random_weight

from subbit_infer import Explanation, PackedWeight, explain, models, pack
from subbit_infer.backends import cpu, native
from subbit_infer.nn import SubbitConv2d, SubbitLinear

needs_vbmi = pytest.mark.skipif(MACHINE_LEVELS != LEVELS, reason="the plans are those of avx512vbmi")


@pytest.fixture(autouse=True)
def no_wishes(monkeypatch):
    monkeypatch.delenv("SUBBIT_PLAN", raising=False)
    monkeypatch.delenv("SUBBIT_ISA", raising=False)


def conv_layer(out_channels=64, in_channels=32, codewords=32, unit=UNIT_3X3, groups=1, **options):
    indices, codebook = random_weight(unit, out_channels, in_channels // groups // unit[0], codewords)
    return SubbitConv2d.from_indices(indices, codebook, groups=groups, **options)


def what_ran(layer):
    """The kernels of every convolution that the layer's weight was planned for."""
    prepared = cpu.find_prepared(layer.packed_indices, layer.packed_codebook, layer.units, layer.codewords, layer.unit)
    return {conv.kernel for conv in prepared.convs.values()}


def silent(module, example, **options):
    return explain(module, example, print=None, **options)


class Two(torch.nn.Module):
    """One layer that is called twice, one with a residual by name, one that is not called; and what has modes."""

    def __init__(self):
        super().__init__()
        self.first = conv_layer(32, 32, padding=1)
        self.norm = torch.nn.BatchNorm2d(32)
        self.drop = torch.nn.Dropout(0.5)
        self.last = conv_layer(64, 32, stride=2, activation_bits=1)
        self.spare = conv_layer()

    def forward(self, x, y):
        x = self.drop(self.norm(self.first(self.first(x), residual=y)))
        return self.last(x=x)


@pytest.mark.parametrize("plan", ["", "sharing", "rows", "patches", "bits", "dense"])
@pytest.mark.parametrize("activation_bits", [32, 1])
def test_what_it_says_is_what_runs(monkeypatch, plan, activation_bits):
    monkeypatch.setenv("SUBBIT_PLAN", plan)
    for options in ({}, {"out_channels": 8, "codewords": 256}, {"groups": 2, "stride": 2}, {"unit": UNIT_1X1}):
        layer = conv_layer(activation_bits=activation_bits, **options)
        x = integers(2, 32, 13, 14)
        (said,) = silent(layer, x).layers
        layer(x)
        assert what_ran(layer) == {said.kernel}
        assert (said.plan == "dense") == (said.kernel is None)
        assert said.candidates[0].microseconds == min(c.microseconds for c in said.candidates)
        if not plan:
            assert said.plan == said.candidates[0].plan
        elif plan in {c.plan for c in said.candidates}:
            assert said.plan == plan


def test_sizes_are_those_that_were_planned():
    """The planner is asked about the very problem that the call had."""
    layer = conv_layer(60, 36, stride=(1, 2), dilation=(3, 1), padding=2, groups=3, activation_bits=1)
    (said,) = silent(layer, integers(2, 36, 13, 14)).layers
    found = native.candidates(True, native.UNITS[UNIT_3X3], 32, 12, 20, 3, 3, 11 * 8, 13 * 14, native.active_level())
    assert [(c["plan"], c["nanoseconds"] / 1e3) for c in found] == [(c.plan, c.microseconds) for c in said.candidates]
    assert (said.input_shape, said.output_shape) == ((2, 36, 13, 14), (2, 60, 11, 8))
    assert said.macs == 36 * 60 // 3 * 9 * 11 * 8


def test_a_model(capsys):
    model = Two()
    explanation = explain(model, (integers(1, 32, 8, 8), integers(1, 32, 8, 8)))
    printed = capsys.readouterr().out
    assert printed == f"{explanation}\n"
    assert [layer.name for layer in explanation.layers] == ["first", "first", "last"]
    assert [layer.activation_bits for layer in explanation.layers] == [32, 32, 1]
    assert explanation.layers[2].output_shape == (1, 64, 3, 3)
    assert explanation.not_called == ("spare",)
    assert "Never called with this input: spare." in printed
    assert printed.startswith("Two: 3 calls of sub-bit layers, level ")
    lines = printed.splitlines()
    assert " ".join(lines[1].split()) == "layer input output unit tau act kernel predicted us saved MACs why"
    assert re.search(r"^first +1x32x8x8 +1x32x8x8 +1x3x3 +5 +32 +", lines[2])
    assert len({line.index("1x3x3") for line in lines[2:5]}) == 1
    assert lines[-1].startswith("Predicted, an image on one thread: ")
    assert repr(explanation) == "<Explanation of Two: 3 calls of sub-bit layers; print it for the table>"


def test_print():
    lines = []
    explanation = explain(conv_layer(), integers(1, 32, 8, 8), print=lines.append)
    assert lines == [str(explanation)]
    assert isinstance(explanation, Explanation)


def test_for_json():
    explanation = silent(Two(), (integers(1, 32, 8, 8), integers(1, 32, 8, 8)))
    data = explanation.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["layers"][2]["unit"] == [1, 3, 3]
    assert data["layers"][0]["candidates"][0].keys() == {"plan", "kernel", "level", "microseconds"}


def test_the_model_is_left_as_it_was():
    model = Two()
    model.drop.eval()
    model.norm.register_forward_hook(lambda module, args, output: None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    x = integers(1, 32, 8, 8).requires_grad_()
    silent(model, (x, integers(1, 32, 8, 8)))
    with pytest.raises(TypeError):
        silent(model, x)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    model(x, integers(1, 32, 8, 8)).sum().backward()  # nothing that was kept stands in the way of gradients


@needs_vbmi
@pytest.mark.parametrize(
    ("layer", "side", "reason"),
    [
        (
            {"out_channels": 512, "in_channels": 512},
            7,
            r"rows: responses shared by 512 outputs over 32 codewords; dense would take \d+(\.\d)?x",
        ),
        (
            {"out_channels": 16, "in_channels": 64, "codewords": 128},
            28,
            r"dense: 16 outputs share too little over 128 codewords; rows would take \d+(\.\d)?x",
        ),
        (
            {"out_channels": 512, "in_channels": 512, "activation_bits": 1},
            7,
            r"patches: responses of 32 codewords looked up for 64 of 512 outputs at once; dense would take \d+(\.\d)?x",
        ),
        (
            {"out_channels": 16, "in_channels": 512, "activation_bits": 1},
            7,
            r"bits: 16 outputs do not fill a look-up of 64; dense would take \d+(\.\d)?x",
        ),
        (
            {"out_channels": 128, "in_channels": 128, "codewords": 256, "activation_bits": 1},
            28,
            r"bits: 256 codewords do not fit a look-up of 64; dense would take \d+(\.\d)?x",
        ),
        (
            {"out_channels": 128, "in_channels": 64, "stride": 2, "activation_bits": 1},
            56,
            r"bits: matching 64 channels at once is quicker than sharing; dense would take \d+(\.\d)?x",
        ),
    ],
)
def test_reasons(layer, side, reason):
    (said,) = silent(conv_layer(padding=1, **layer), integers(1, layer["in_channels"], side, side)).layers
    assert re.fullmatch(reason, said.reason)
    assert (said.macs_saved > 0) == (said.plan in ("rows", "patches"))


def test_macs_saved_are_the_papers():
    (said,) = silent(conv_layer(64, 64, padding=1), integers(1, 64, 14, 14)).layers
    assert said.macs == 64 * 64 * 9 * 196
    assert said.macs_saved == said.macs - 64 * (9 * 32 + 64 / 2) * 196


def test_forced_plans_say_so(monkeypatch):
    monkeypatch.setenv("SUBBIT_PLAN", "dense")
    explanation = silent(conv_layer(512, 128), integers(1, 128, 9, 9))
    (said,) = explanation.layers
    assert re.fullmatch(r"dense: forced by SUBBIT_PLAN=dense; rows would take 0\.\d+x", said.reason)
    assert (said.plan, said.kernel, said.level, said.macs_saved) == ("dense", None, None, 0)
    assert "SUBBIT_PLAN=dense" in str(explanation).splitlines()[0]
    monkeypatch.setenv("SUBBIT_PLAN", "bits")
    (said,) = silent(conv_layer(512, 128), integers(1, 128, 9, 9)).layers
    assert said.plan == "rows"
    assert said.reason.endswith("; SUBBIT_PLAN=bits has no kernel for it")


def test_a_plan_that_was_made_before_is_still_the_one_that_runs(monkeypatch):
    layer, x = conv_layer(512, 128), integers(1, 128, 9, 9)
    with torch.no_grad():
        layer(x)
    monkeypatch.setenv("SUBBIT_PLAN", "dense")
    (said,) = silent(layer, x).layers
    assert said.plan == "rows"
    assert what_ran(layer) == {said.kernel}
    assert said.reason.endswith("; SUBBIT_PLAN=dense came after its plan")
    monkeypatch.delenv("SUBBIT_PLAN")
    monkeypatch.setenv("SUBBIT_ISA", "scalar")
    (said,) = silent(layer, x).layers
    assert what_ran(layer) == {said.kernel}


@pytest.mark.parametrize("level", MACHINE_LEVELS)
def test_levels(monkeypatch, level):
    monkeypatch.setenv("SUBBIT_ISA", level)
    explanation = silent(conv_layer(512, 128), integers(1, 128, 9, 9))
    assert explanation.level == level
    assert all(
        c.level is None or LEVELS.index(c.level) <= LEVELS.index(level) for c in explanation.layers[0].candidates
    )


def test_units_without_kernels_run_the_reference():
    explanation = silent(conv_layer(unit=(1, 2, 3)), integers(1, 32, 8, 8))
    (said,) = explanation.layers
    assert said.reason == "reference: no kernel for units of (1, 2, 3)"
    assert (said.plan, said.kernel, said.level, said.candidates, said.macs_saved) == ("reference", None, None, (), 0)
    assert said.microseconds() is None
    assert "Predicted" not in str(explanation)


def test_devices_without_kernels_run_the_reference():
    layer = conv_layer().to("meta")
    (said,) = silent(layer, torch.empty(1, 32, 8, 8, device="meta")).layers
    assert said.reason == "reference: no kernel for the device meta"


@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 3, 24), (0, 24)])
def test_linear(shape):
    layer = SubbitLinear.from_indices(*random_weight(UNIT_1X1, 80, 3, 4))
    (said,) = silent(layer, integers(*shape)).layers
    vectors = integers(*shape).numel() // 24
    assert (said.name, said.input_shape, said.output_shape) == ("SubbitLinear", shape, (*shape[:-1], 80))
    assert said.macs == 24 * 80 * max(vectors, 1)  # of an image: where there is none, it would have one pixel
    assert what_ran(layer) == {said.kernel}


def test_packed_activations_and_images_without_batch():
    layer = conv_layer(64, 70, activation_bits=1, output="both")
    (said,) = silent(layer, pack(integers(2, 70, 6, 7))).layers
    assert (said.input_shape, said.output_shape) == ((2, 70, 6, 7), (2, 64, 4, 5))
    (said,) = silent(conv_layer(), integers(32, 6, 7)).layers
    assert (said.input_shape, said.output_shape) == ((32, 6, 7), (64, 4, 5))
    linear = SubbitLinear.from_indices(*random_weight(UNIT_1X1, 70, 3, 4), activation_bits=1, output="packed")
    (said,) = silent(linear, pack(integers(5, 24, 1, 1))).layers
    assert said.output_shape == (5, 70, 1, 1)
    assert what_ran(linear) == {said.kernel}


def test_more_sizes_than_plans_are_kept_for():
    layer = conv_layer(8, 8)
    with torch.no_grad():
        for width in range(3, 3 + cpu._MOST_CONVS + 1):
            layer(integers(1, 8, 3, width))
        (said,) = silent(layer, integers(1, 8, 3, 4)).layers  # repeated without being planned again
    assert said.output_shape == (1, 8, 1, 2)


def test_a_network():
    model = models.resnet18(1)
    models.make_subbit_weights(model, 5)
    explanation = silent(models.to_subbit(model), integers(1, 3, 64, 64))
    assert len(explanation.layers) == 16
    assert explanation.not_called == ()


class TestErrors:
    def test_no_module(self):
        with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got PackedWeight"):
            silent(PackedWeight.from_indices(*random_weight(UNIT_3X3, 8, 8, 8)), integers(1, 8, 4, 4))

    def test_no_layers(self):
        with pytest.raises(ValueError, match="module must be or hold a SubbitConv2d or SubbitLinear, got ReLU without"):
            silent(torch.nn.ReLU(), integers(1, 8, 4, 4))

    def test_input_of_another_size(self):
        with pytest.raises(ValueError, match="example_input must be an input of SubbitConv2d: x must have C_in = 32"):
            silent(conv_layer(), integers(1, 31, 8, 8))

    def test_input_of_another_number(self):
        with pytest.raises(TypeError, match=r"example_input must be an input of Two: .*missing 1 required positional"):
            silent(Two(), integers(1, 32, 8, 8))

    def test_input_that_does_not_fit_torchs_layers(self):
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 1), conv_layer())
        with pytest.raises(ValueError, match="example_input must be an input of Sequential: "):
            silent(model, integers(1, 4, 8, 8))

    def test_unknown_plan(self, monkeypatch):
        monkeypatch.setenv("SUBBIT_PLAN", "magic")
        with pytest.raises(ValueError, match=r"^SUBBIT_PLAN must be auto"):
            silent(conv_layer(), integers(1, 32, 8, 8))
