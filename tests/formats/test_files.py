"""Models as one file: what is saved is what is loaded."""

from __future__ import annotations

import copy
import json
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from converted_models import conv, converted, dense, same_state
from helpers import UNIT_1X1, UNIT_3X3, integers, random_weight

from subbit_infer import PackedWeight, convert, load, load_weights, models, save, save_weights
from subbit_infer import formats as files
from subbit_infer.nn import SubbitConv2d, SubbitLinear

DATA = Path(__file__).parent.parent / "data"


@pytest.mark.parametrize("make", [converted, dense])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_round_trip(path, make, device):
    model = converted()
    save(model, path)
    target = make().to(device).train()
    before = copy.deepcopy(target)
    loaded = load(path, target)
    assert same_state(loaded, model)
    x = integers(2, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    for name, layer in model.named_modules():
        if isinstance(layer, SubbitConv2d | SubbitLinear):
            assert type(loaded.get_submodule(name)) is type(layer)
            assert repr(loaded.get_submodule(name)) == repr(layer)
    assert not any(module.training for module in loaded.modules())
    assert target.training
    assert [type(m) for m in target.modules()] == [type(m) for m in before.modules()]
    if device == "cpu":
        assert same_state(target, before)


def test_what_is_shared_is_stored_once_and_shared_again(path):
    model = converted()
    save(model, path)
    with safetensors.safe_open(path, "pt") as file:
        keys = set(file.keys())
        shared = json.loads(file.metadata()["shared"])
    assert shared["tied.weight"] == "fc.weight"
    assert shared["again.packed_indices"] == "two.packed_indices"
    assert keys == model.state_dict().keys() - shared.keys()
    for target in (converted(), dense()):
        loaded = load(path, target)
        assert loaded.tied.weight is loaded.fc.weight
        assert loaded.again is loaded.two


def test_one_packed_weight_in_two_layers_is_stored_once(path):
    weight = PackedWeight.from_indices(*random_weight(UNIT_3X3, 16, 16, 32))
    model = torch.nn.Sequential(*(SubbitConv2d.from_packed(weight, stride=stride) for stride in (1, 2)))
    save(model, path)
    info = files.inspect(path)
    assert info.body_bytes == weight.nbytes
    assert info.formula_bytes == 16 * 16 * 5 / 8
    plain = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3), torch.nn.Conv2d(16, 16, 3, stride=2))
    loaded = load(path, plain)
    assert loaded[0].packed_indices is loaded[1].packed_indices
    assert (loaded[0].stride, loaded[1].stride) == (1, 2)


def test_a_module_with_two_names_must_be_one_in_the_file(path):
    save(torch.nn.Sequential(conv(seed=1), conv(seed=2)), path)
    layer = torch.nn.Conv2d(8, 8, 3)
    with pytest.raises(ValueError, match=r"'0.packed_indices' and '1.packed_indices' are one tensor in the model and"):
        load(path, torch.nn.Sequential(layer, layer))


def test_order_of_dimensions_is_kept_and_gaps_are_not(path):
    model = torch.nn.Sequential(conv())
    model.register_buffer("turned", torch.rand(5, 4).t())
    model.register_buffer("gaps", torch.rand(4, 6)[:, ::2])
    model.register_buffer("repeated", torch.rand(1, 3).expand(4, 3))
    save(model, path)
    loaded = load(path, copy.deepcopy(model))
    for name in ("turned", "gaps", "repeated"):
        assert torch.equal(getattr(loaded, name), getattr(model, name))
    assert loaded.turned.stride() == (1, 4)
    assert loaded.gaps.stride() == (3, 1)
    assert loaded.repeated.stride() == (3, 1)
    with safetensors.safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("turned"), model.turned)  # to every reader


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_those_of_the_file(path, dtype):
    model = torch.nn.Sequential(conv(), torch.nn.BatchNorm2d(8)).to(dtype).eval()
    save(model, path)
    loaded = load(path, torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.BatchNorm2d(8)))
    assert same_state(loaded, model)
    assert loaded[1].weight.dtype == dtype


def test_a_layer_alone(path):
    layer = conv(activation="relu")
    save(layer, path)
    loaded = load(path, torch.nn.Conv2d(8, 8, 3))
    assert same_state(loaded, layer)
    assert (loaded.activation, loaded.padding) == ("relu", 1)


def test_loaded_in_inference_mode_it_still_has_gradients(path):
    save(torch.nn.Sequential(conv(), torch.nn.BatchNorm2d(8)), path)
    with torch.inference_mode():
        loaded = load(path, torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.BatchNorm2d(8)))
    loaded(torch.rand(1, 8, 4, 4)).sum().backward()
    assert loaded[1].weight.grad is not None


def test_saving_changes_nothing_and_leaves_no_other_file(path):
    model = converted()
    before = {name: (t.data_ptr(), t.clone()) for name, t in model.state_dict().items()}
    save(model, path)
    save(model, path)
    assert {name: t.data_ptr() for name, t in model.state_dict().items()} == {n: p for n, (p, _) in before.items()}
    assert os.listdir(path.parent) == [path.name]


def test_notes_are_shown_and_change_nothing_else(path):
    model = converted()
    save(model, path, {"accuracy": "92.1 %", "data": "Fashion-MNIST"})
    assert same_state(load(path, converted()), model)
    found = files.inspect(path)
    assert found.notes == {"accuracy": "92.1 %", "data": "Fashion-MNIST"}
    assert "Fashion-MNIST" in str(found)
    assert found.to_dict()["notes"] == found.notes
    save(model, path)
    assert files.inspect(path).notes == {}


@pytest.mark.parametrize("notes", [{"accuracy": 92.1}, {1: "one"}])
def test_notes_are_strings(path, notes):
    path.write_bytes(b"as it was")
    with pytest.raises(TypeError, match="notes must be strings by strings"):
        save(converted(), path, notes)
    assert path.read_bytes() == b"as it was"


@pytest.mark.parametrize("notes", ['["a"]', '{"accuracy": 92.1}', "{"])
def test_notes_of_a_file_are_checked(path, notes):
    save(converted(), path)
    with safetensors.safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, metadata | {"notes": notes})
    with pytest.raises(ValueError, match="the metadata 'notes' must be"):
        files.inspect(path)


class TestResNet18:
    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        dense = models.resnet18()
        models.make_subbit_weights(dense, tau=5)
        return models.to_subbit(dense)

    def test_the_body_takes_five_ninths_of_a_bit(self, path, model):
        save(model, path)
        info = files.inspect(path)
        body = [layer for layer in model.modules() if isinstance(layer, SubbitConv2d)]
        weights = sum(layer.out_channels * layer.in_channels * 9 for layer in body)
        assert (len(info.layers), info.kind, info.version) == (16, "model", 1)
        assert info.formula_bytes == pytest.approx(weights * 5 / 9 / 8)
        assert info.formula_bytes <= info.body_bytes <= 1.01 * info.formula_bytes
        tensors = model.state_dict()
        stored = sum(t.nbytes for name, t in tensors.items() if "packed_" in name)
        assert info.body_bytes == stored == sum(layer.body_bytes for layer in info.layers)
        assert info.other_bytes == sum(t.nbytes for t in tensors.values()) - stored
        assert info.total_bytes == path.stat().st_size
        header = info.total_bytes - info.body_bytes - info.other_bytes
        assert 0 < header < 0.01 * info.total_bytes

    def test_round_trip(self, path, model):
        save(model, path)
        loaded = load(path, models.resnet18(seed=1))
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(loaded(x), model(x))

    def test_folded(self, path, model):
        x = torch.randn(2, 3, 64, 64)
        folded = convert(model, x, fold=True).model
        save(folded, path)
        with torch.device("meta"):
            target = copy.deepcopy(folded)
        loaded = load(path, target)
        with torch.no_grad():
            assert torch.equal(loaded(x[:1]), folded(x[:1]))


class TestGolden:
    """Files of version 1, made once by tests/data/make_v1.py, with the outputs that they gave."""

    expected = safetensors.torch.load_file(DATA / "expected_v1.safetensors")

    def test_model(self):
        twice = torch.nn.Conv2d(16, 16, 1)
        model = torch.nn.Sequential(
            OrderedDict(
                stem=torch.nn.Conv2d(3, 8, 3, bias=False),
                conv1=torch.nn.Conv2d(8, 16, 3, stride=2, padding=1),
                conv2=twice,
                again=twice,
                pool=torch.nn.AdaptiveMaxPool2d(1),
                flatten=torch.nn.Flatten(),
                fc=torch.nn.Linear(16, 10),
            )
        )
        loaded = load(DATA / "model_v1.safetensors", model)
        with torch.no_grad():
            assert torch.equal(loaded(self.expected["x"]), self.expected["y"])
        assert loaded.stem.weight.is_contiguous(memory_format=torch.channels_last)
        assert loaded.again is loaded.conv2

    def test_weights(self):
        weights = load_weights(DATA / "weights_v1.safetensors")
        assert {name: torch.equal(w.decode(), self.expected[name]) for name, w in weights.items()} == {
            "first": True,
            "second": True,
        }

    def test_inspect(self):
        info = files.inspect(DATA / "model_v1.safetensors")
        assert [(layer.name, layer.kind, layer.tau, layer.activation_bits) for layer in info.layers] == [
            ("conv1", "conv2d", 5, 32),
            ("conv2", "conv2d", 3, 1),
            ("again", "conv2d", 3, 1),
            ("fc", "linear", 5, 32),
        ]
        info = files.inspect(DATA / "weights_v1.safetensors")
        assert (info.kind, [layer.shape for layer in info.layers]) == ("weights", [(16, 8, 3, 3), (16, 16, 1, 1)])


def test_inspect_weights(path):
    weights = {
        "a": PackedWeight.from_indices(*random_weight(UNIT_3X3, 9, 10, 32), torch.rand(9)),
        "b": PackedWeight.from_indices(*random_weight(UNIT_1X1, 4, 6, 5)),
    }
    save_weights(weights, path)
    info = files.inspect(path)
    assert info.body_bytes == sum(w.packed_indices.nbytes + w.packed_codebook.nbytes for w in weights.values())
    assert info.body_bytes + info.other_bytes == sum(w.nbytes for w in weights.values())
    assert info.formula_bytes == (9 * 10 * 5 + 4 * 6 * 3) / 8
    assert json.loads(json.dumps(info.to_dict())) == info.to_dict()
    with pytest.raises(ValueError, match=r"holds weights, not a model; read it with subbit_infer.load_weights"):
        load(path, dense())
