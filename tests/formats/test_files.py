"""Models as one file: what is saved is what is loaded, and nothing else is."""

from __future__ import annotations

import copy
import json
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers import UNIT_1X1, UNIT_3X3, integers, random_weight

from subbit_infer import PackedWeight, convert, load, load_weights, models, save, save_weights
from subbit_infer import formats as files
from subbit_infer.nn import SubbitConv2d, SubbitLinear

DATA = Path(__file__).parent.parent / "data"


def conv(outputs: int = 8, inputs: int = 8, seed: int = 0, **options) -> SubbitConv2d:
    indices, codebook = random_weight(UNIT_3X3, outputs, inputs, 20, seed)
    return SubbitConv2d.from_indices(indices, codebook, scale=torch.rand(outputs) + 0.5, padding=1, **options)


def converted() -> torch.nn.Sequential:
    """Every kind of layer and vector, a BatchNorm, tied layers, tied parameters, and channels_last."""
    vectors = {"slope": torch.rand(8), "shift": torch.rand(8), "pack_shift": torch.rand(8)}
    linear = SubbitLinear.from_indices(*random_weight(UNIT_1X1, 16, 1, 16), bias=torch.rand(16))
    twice = conv(seed=1)
    model = torch.nn.Sequential(
        OrderedDict(
            stem=torch.nn.Conv2d(3, 8, 3, bias=False).to(memory_format=torch.channels_last),
            norm=torch.nn.BatchNorm2d(8),
            packs=conv(activation="prelu", output="packed", activation_bits=1, sign_zero=1, **vectors),
            one=conv(activation_bits=1, seed=2),
            two=twice,
            again=twice,
            pool=torch.nn.AdaptiveAvgPool2d(1),
            flatten=torch.nn.Flatten(),
            linear=linear,
            fc=torch.nn.Linear(16, 16),
            tied=torch.nn.Linear(16, 16),
        )
    )
    model.tied.weight = model.fc.weight
    return model.eval()


def dense() -> torch.nn.Sequential:
    """The same, before it was converted."""
    twice = torch.nn.Conv2d(8, 8, 3, padding=1, bias=False)
    return torch.nn.Sequential(
        OrderedDict(
            stem=torch.nn.Conv2d(3, 8, 3, bias=False),
            norm=torch.nn.BatchNorm2d(8),
            packs=torch.nn.Conv2d(8, 8, 3, padding=1, bias=False),
            one=torch.nn.Identity(),  # whatever computed it
            two=twice,
            again=twice,
            pool=torch.nn.AdaptiveAvgPool2d(1),
            flatten=torch.nn.Flatten(),
            linear=torch.nn.Linear(8, 16),
            fc=torch.nn.Linear(16, 16),
            tied=torch.nn.Linear(16, 16),
        )
    )


def same_state(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), two.state_dict()
    return ours.keys() == theirs.keys() and all(
        t.dtype == theirs[k].dtype and t.stride() == theirs[k].stride() and torch.equal(t, theirs[k])
        for k, t in ours.items()
    )


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "m.safetensors"


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


class TestUnsavable:
    def test_no_module(self, path):
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got dict"):
            save({}, path)
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
            load(path, "resnet18")

    def test_nothing_converted(self, path):
        with pytest.raises(ValueError, match="model must hold a SubbitConv2d or SubbitLinear, got Sequential without"):
            save(dense(), path)

    @pytest.mark.parametrize(
        ("buffer", "message"),
        [
            (torch.zeros(3, device="meta"), "'odd' is on meta"),
            (torch.eye(3).to_sparse(), "'odd' is no strided tensor"),
        ],
    )
    def test_odd_tensors(self, path, buffer, message):
        model = torch.nn.Sequential(conv())
        model.register_buffer("odd", buffer)
        with pytest.raises(ValueError, match=message):
            save(model, path)
        assert not path.exists()

    def test_lazy_layers(self, path):
        with pytest.raises(ValueError, match=r"'1.weight' is no strided tensor with values"):
            save(torch.nn.Sequential(conv(), torch.nn.LazyLinear(3)), path)

    def test_extra_state(self, path):
        class Odd(torch.nn.Sequential):
            def get_extra_state(self):
                return {"a": 1}

        with pytest.raises(ValueError, match="'_extra_state' is a dict"):
            save(Odd(conv()), path)

    def test_a_failed_save_leaves_the_old_file(self, path, monkeypatch):
        save(conv(), path)
        before = path.read_bytes()
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            save(converted(), path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]

    def test_bad_paths(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such directory"):
            save(conv(), tmp_path / "no" / "m")
        with pytest.raises(ValueError, match="path must name a file"):
            save(conv(), "")


class TestMisfits:
    """A good file and another model."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda m: m.append(torch.nn.Linear(2, 2)), "lacks tensors of the model: '3.weight', '3.bias'"),
            (lambda m: m.pop(2), "holds tensors that the model lacks: '2.bias', '2.weight'"),
            (lambda m: m.__setitem__(2, torch.nn.Linear(8, 3)), r"'2.weight' must have the shape \(3, 8\).*\(4, 8\)"),
            (lambda m: m.__setitem__(0, torch.nn.Conv2d(8, 9, 3)), r"'0' stands for a weight \(8, 8, 3, 3\).*\(9, 8,"),
            (lambda m: m.__delitem__(slice(0, 3)), "the model has no layer '0'"),
            (lambda m: m.__setitem__(1, conv()), "lacks tensors of the model: '1.packed_indices'"),
            (lambda m: m.__setitem__(2, torch.nn.LazyLinear(4)), "'2.weight' is another"),
        ],
    )
    def test_model(self, path, change, message):
        def make(first):
            return torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Linear(8, 4))

        save(make(conv()), path)
        target = make(torch.nn.Conv2d(8, 8, 3))
        change(target)
        with pytest.raises(ValueError, match=message) as caught:
            load(path, target)
        assert "\n" not in str(caught.value)

    def test_many_names_are_cut_short(self, path):
        save(conv(), path)
        target = torch.nn.Module()
        target.layer = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(9))
        save(torch.nn.ModuleDict({"a": conv()}), path)
        target.a = torch.nn.Identity()
        with pytest.raises(ValueError, match=r"'layer.0.weight'.* and 14 more$"):
            load(path, target)

    def test_what_is_in_no_file_must_have_memory(self, path):
        model = torch.nn.Sequential(conv())
        model.register_buffer("unsaved", torch.zeros(3), persistent=False)
        save(model, path)
        with pytest.raises(ValueError, match="on meta are 'unsaved'"):
            load(path, model.to("meta"))


def entry(**changes) -> dict[str, str]:
    """Metadata of a file whose layer has an entry with other fields; None takes one away."""
    layer = files.header.describe(conv()) | changes
    return {"layers": json.dumps({"a": {k: v for k, v in layer.items() if v is not None}})}


class TestHostile:
    """Files that nobody has saved."""

    def rewritten(self, path, metadata=None, tensors=None):
        save(torch.nn.ModuleDict({"a": conv()}), path)
        with safetensors.safe_open(path, "pt") as file:
            old_metadata, old = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        merged = {k: v for k, v in (old | (tensors or {})).items() if v is not None}
        safetensors.torch.save_file(merged, path, old_metadata | (metadata or {}))
        return path

    def target(self):
        return torch.nn.ModuleDict({"a": torch.nn.Conv2d(8, 8, 3)})

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ({"format": "pt"}, "must have format 'subbit_infer.model'"),
            ({"version": "2"}, "version 2: made by a newer subbit_infer; update"),
            ({"version": "9" * 5000}, "no such version"),
            ({"version": "-1"}, "must have format version 1, got '-1'"),
            ({"layers": "not json"}, "'layers' must be a JSON object"),
            ({"layers": "[1]"}, "must be a JSON object, got list"),
            ({"layers": "[" * 100_000}, "must be a JSON object"),
            ({"layers": '{"a": 1}'}, "layer 'a' must be a JSON object, got int"),
            ({"layers": json.dumps({"b": json.loads(entry()["layers"])["a"]})}, "'b.packed_indices' must have shape"),
            (entry(kind="conv3d"), "wrong kind|fields of its kind"),
            (entry(tau=None), "missing or unknown are 'tau'"),
            (entry(code="x"), "missing or unknown are 'code'"),
            (entry(in_channels=0), "wrong in_channels: '0'"),
            (entry(in_channels=2**62), "wrong in_channels"),
            (entry(in_channels=2**31 - 1), r"'a.packed_indices' must have shape \(8, 1342177280\), got \(8, 5\)"),
            (entry(out_channels=2**31 - 1), r"must have shape \(2147483647, 5\)"),
            (entry(out_channels="8"), "wrong out_channels"),
            (entry(out_channels=True), "wrong out_channels"),
            (entry(unit=[1, 3]), "wrong unit"),
            (entry(unit=[1, 2**30, 2**30]), r"'a.packed_codebook' must have shape"),
            (entry(unit=[3, 3, 3]), "must have channels that divide by its groups and units"),
            (entry(groups=3), "must have channels that divide"),
            (entry(codewords=257), "at most 256 codewords"),
            (entry(tau=4), r"tau = ceil\(log2\(codewords\)\), got 20 and 4"),
            (entry(stride=0), "wrong stride"),
            (entry(stride=[1, 1, 1]), "wrong stride"),
            (entry(padding="reflect"), "wrong padding: 'reflect'"),
            (entry(padding=-1), "wrong padding"),
            (entry(dilation=1.5), "wrong dilation"),
            (entry(activation_bits=2), "activation_bits must be 1 or 32, got 2"),
            (entry(sign_zero=7), "sign_zero must be 0 or 1"),
            (entry(activation="gelu"), "activation must be"),
            (entry(activation="prelu"), "a slope just where its activation is 'prelu'"),
            (entry(output="both", vectors=["scale", "bias"]), "'a.bias' must have shape"),
            (entry(vectors=["scale", "scale"]), "wrong vectors"),
            (entry(vectors=[]), "must have the fields|holds tensors that the model lacks: 'a.scale'"),
            ({"shared": '{"a.x": "a.y"}'}, "'a.x' must share one of the file's"),
            ({"shared": '{"a.scale": "a.packed_indices"}'}, "'a.scale' must share one of the file's"),
            ({"shared": '{"a.x": ["a.scale"]}'}, "'a.x' must share one of the file's"),
            ({"orders": '{"a.packed_indices": [0, 0]}'}, "the order of 'a.packed_indices'"),
            ({"orders": '{"a.packed_indices": [0]}'}, "the order of 'a.packed_indices'"),
            ({"orders": '{"x": [0]}'}, "the order of 'x'"),
        ],
    )
    def test_metadata(self, path, metadata, message):
        with pytest.raises(ValueError, match=message) as caught:
            load(self.rewritten(path, metadata), self.target())
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600 + len(str(path))

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"a.packed_indices": torch.full((8, 5), 255, dtype=torch.uint8)}, r"indices must be in \[0, 20\)"),
            ({"a.packed_indices": torch.zeros(8, 5)}, "must be uint8, got torch.float32"),
            ({"a.packed_indices": None}, r"'a.packed_indices' must have shape \(8, 5\), got None"),
            ({"a.scale": torch.ones(9)}, r"'a.scale' must have shape \(8,\), got \(9,\)"),
            ({"a.x": torch.ones(9)}, "holds tensors that the model lacks: 'a.x'"),
        ],
    )
    def test_tensors(self, path, tensors, message):
        with pytest.raises(ValueError, match=message) as caught:
            load(self.rewritten(path, tensors=tensors), self.target())
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("read", [files.inspect, lambda path: load(path, dense())])
    @pytest.mark.parametrize("keep", [0, 4, 8, 50, -1])
    def test_truncated(self, path, keep, read):
        save(converted(), path)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            read(path)

    @pytest.mark.parametrize("read", [files.inspect, lambda path: load(path, dense())])
    def test_others(self, tmp_path, read):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read(tmp_path / "nothing")
        torch.save({"a": torch.ones(1)}, tmp_path / "pickle")
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            read(tmp_path / "pickle")
        safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "plain")
        with pytest.raises(ValueError, match=r"must have format 'subbit_infer.model' in its metadata, got None"):
            read(tmp_path / "plain")

    @pytest.mark.parametrize(
        "shape", [5, [1, 2], [0, 5, 1, 3, 3], [10, 257, 1, 3, 3], [2**62, 32, 1, 3, 3], [10, 32, 1, 9, 3]]
    )
    def test_weights(self, path, shape):
        save_weights({"a": PackedWeight.from_indices(*random_weight(UNIT_3X3, 9, 10, 32))}, path)
        tensors = safetensors.torch.load_file(path)
        metadata = {"format": "subbit_infer", "version": "1", "weights": json.dumps({"a": shape})}
        safetensors.torch.save_file(tensors, path, metadata)
        with pytest.raises(ValueError, match="weight 'a' must have"):
            files.inspect(path)
