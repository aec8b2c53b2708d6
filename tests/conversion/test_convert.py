"""convert: one call for modules and programs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import UNIT_3X3, dense_weight, integers, random_weight
from torch import nn

import subbit_infer
from subbit_infer import models
from subbit_infer.conversion.model import VerificationError, convert
from subbit_infer.nn import SubbitConv2d

X = integers(2, 16, 8, 8)


def block():
    """A convolution of signs with a shortcut, binarized by comparison, as torch.export shows it by no sign."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
            self.conv.weight.data = 0.5 * dense_weight(*random_weight(UNIT_3X3, 16, 16, 16))
            self.norm = nn.BatchNorm2d(16)
            self.norm.running_mean.copy_(torch.arange(16.0))

        def forward(self, x):
            return F.relu(self.norm(self.conv((x > 0).float() * 2 - 1)) + x)

    return Block().eval()


def layers(model):
    return [m for m in model.modules() if isinstance(m, SubbitConv2d)]


class TestModules:
    @pytest.mark.parametrize("fold", [False, True])
    def test_a_module(self, fold):
        model = block()
        before = copy.deepcopy(model.state_dict())
        converted, report = convert(model, X, fold=fold, verify=True)
        assert [(r.name, r.activation_bits) for r in report.layers] == [("conv", 1)]
        assert [layer.activation for layer in layers(converted)] == ["relu" if fold else "none"]
        with torch.no_grad():
            torch.testing.assert_close(converted(X), model(X))
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert not layers(model)

    def test_nothing_to_convert(self):
        model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)).eval()
        converted, report = convert(model, X, fold=True, verify=True)
        assert type(converted) is nn.Sequential
        assert report.converted == ()

    def test_in_place(self):
        model = block()
        converted, _ = convert(model, X, in_place=True)
        assert converted is model
        assert layers(model)

    def test_without_an_input(self):
        converted, report = convert(block())
        assert [r.activation_bits for r in report.layers] == [32]
        assert report.notes
        assert layers(converted)

    def test_compressed(self):
        model = models.resnet18()
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        models.calibrate(model, images)
        dense, _ = subbit_infer.compress(model, tau=4, method="kmeans")
        converted, report = convert(dense, images, fold=True, verify=True)
        assert len(report.converted) == 19  # all but the first convolution and the last layer
        assert {r.tau for r in report.converted} == {4}
        assert len(layers(converted)) == 19

    def test_fullgraph(self):
        converted, _ = convert(models.to_subbit(seeded_reactnet()), IMAGES, fold=True)
        compiled = torch.compile(converted, fullgraph=True, backend="aot_eager", dynamic=True)
        with torch.no_grad():
            torch.testing.assert_close(compiled(IMAGES), converted(IMAGES))
            assert compiled(IMAGES[:1]).shape[0] == 1

    @torch.no_grad()
    def test_reasons_of_replacement_stay_in_the_report_of_a_folded_model(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.block = block()
                self.dense = nn.Conv2d(16, 16, 1)
                self.spare = nn.Conv2d(16, 16, 3)  # never called
                self.scaled = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False))
                self.scaled[0].weight.data = self.block.conv.weight.data.clone()
                self.scaled[0].register_forward_hook(lambda module, args, y: 2 * y)

            def forward(self, x):
                return self.scaled(self.dense(self.block(x)))

        model = Model().eval()
        replaced, folded = (convert(model, X, fold=fold).report for fold in (False, True))
        skipped = [(layer.name, layer.why) for layer in replaced.skipped]
        assert [name for name, _ in skipped] == ["dense", "scaled.0", "spare"]
        assert ("scaled.0", "it has forward hooks, which would be lost") in skipped
        assert [layer.name for layer in folded.converted] == ["block.conv", "scaled.0"]
        assert [(layer.name, layer.why) for layer in folded.skipped] == [skipped[0], skipped[2]]

    def test_explained(self, capsys):
        converted, _ = convert(block(), X, fold=True)
        assert [layer.name for layer in subbit_infer.explain(converted, X).layers] == ["conv"]
        assert "conv" in capsys.readouterr().out

    def test_a_layer_that_is_sub_bit_already(self):
        again, report = convert(convert(block(), X).model, X, fold=True, verify=True)
        assert [r.name for r in report.converted] == ["conv"]
        assert layers(again)[0].activation == "relu"


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def seeded_reactnet():
    model = models.reactnet18()
    models.make_subbit_weights(model)
    models.calibrate(model, IMAGES)
    return model


class TestPrograms:
    @pytest.mark.parametrize("fold", [False, True])
    def test_a_program(self, fold):
        model = seeded_reactnet()
        program = torch.export.export(model, (IMAGES,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        converted, report = convert(program, fold=fold, verify=True)
        assert len(report.converted) == 16
        assert {r.activation_bits for r in report.converted} == {1}
        assert isinstance(converted, torch.export.ExportedProgram)
        with torch.no_grad():
            torch.testing.assert_close(converted.module()(IMAGES[:1]), model(IMAGES[:1]), rtol=1e-4, atol=1e-4)


class TestErrors:
    def test_wrong_types(self):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module or an ExportedProgram, got str"):
            convert("model")
        program = torch.export.export(block(), (X,))
        for model, options in ((program, {}), (block(), {"fold": True})):
            with pytest.raises(TypeError, match="in_place must be False"):
                convert(model, X, in_place=True, **options)

    @pytest.mark.parametrize("option", ["fold", "verify"])
    def test_an_input_is_needed(self, option):
        with pytest.raises(ValueError, match=f"example_input must be given to {option}, got None"):
            convert(block(), **{option: True})

    def test_an_input_that_does_not_fit(self):
        with pytest.raises(ValueError, match="example_input must be an input of Block"):
            convert(block(), torch.randn(1, 3, 8, 8))

    def test_verify_notices(self):
        class Unsteady(nn.Module):
            """Gives something else when its layer is a sub-bit one."""

            def __init__(self):
                super().__init__()
                self.inner = block()

            def forward(self, x):
                return self.inner(x) + 0.01 * isinstance(self.inner.conv, SubbitConv2d) * x

        convert(Unsteady(), X)
        with pytest.raises(VerificationError, match=r"output 0 must be within 0\.0001 of the model's"):
            convert(Unsteady(), X, verify=True)
        convert(Unsteady(), X, verify=True, tolerance=1.0)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_verify_takes_nan_and_inf_where_they_were(self, value):
        model = block()
        model.norm.bias.data[3] = value
        convert(model, X, verify=True)
        convert(model, X, verify=True, fold=True)
