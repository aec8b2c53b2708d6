"""Models that cannot be saved, files that do not fit a model, and files that somebody spoilt."""

from __future__ import annotations

import json
import os

import pytest
import safetensors.torch
import torch
from converted_models import conv, converted, dense
from helpers import UNIT_3X3, random_weight

from subbit_infer import PackedWeight, load, save, save_weights
from subbit_infer import formats as files


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
