"""What a file holds, and how its layers would run: subbit info and subbit explain."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from cli_helpers import SHAPE, X, converted, data, dense, export_program, fail, succeed

from subbit_infer import save, save_weights


class TestInfo:
    def test_model(self):
        model = converted()
        save(model, "m.safetensors")
        found = data("info", "m.safetensors")
        layer = model[2]
        body = layer.packed_indices.nbytes + layer.packed_codebook.nbytes
        assert (found["kind"], found["version"], found["body_bytes"]) == ("model", 1, body)
        assert found["layers"][0]["name"] == "2"
        assert f"Indices and codebooks {body} bytes" in succeed("info", "m.safetensors")

    def test_weights(self):
        save_weights({"a": converted()[2].packed_weight()}, "w.safetensors")
        assert data("info", "w.safetensors")["kind"] == "weights"

    def test_program(self):
        export_program("m.pt2", converted())
        found = data("info", "m.pt2")
        assert found["subbit_calls"] == {"conv2d.default": 1}
        assert found["dense_calls"] == {"aten.conv2d.default": 1, "aten.linear.default": 1}
        tensors = converted().state_dict().values()
        assert found["tensor_bytes"] >= sum(t.nbytes for t in tensors)
        assert found["total_bytes"] == os.stat("m.pt2").st_size
        assert "sub-bit: 1 conv2d.default" in succeed("info", "m.pt2")

    def test_onnx(self):
        pytest.importorskip("onnxscript")
        torch.onnx.export(dense(), (X,), "m.onnx", dynamo=True, verbose=False)
        found = data("info", "m.onnx")
        assert (found["subbit_nodes"], found["dense_nodes"]["Conv"]) == ({}, 2)
        Path("cut.onnx").write_bytes(Path("m.onnx").read_bytes()[:100])
        Path("empty.onnx").write_bytes(b"")
        for path in ("cut.onnx", "empty.onnx"):
            assert "is not an ONNX file" in fail("info", path)

    def test_checkpoint(self):
        state = {"a.weight": torch.randn(4, 8, 3, 3), "a.binarize.patterns": torch.randn(8, 9), "b": torch.ones(3)}
        torch.save({"state_dict": state}, "c.pt")
        found = data("info", "c.pt")
        assert (found["kind"], found["layers"][0]["tau"], found["other_bytes"]) == ("checkpoint", 3, 12)

    @pytest.mark.parametrize("name", ["a.safetensors", "a.pt2", "a.onnx", "a.pt"])
    def test_missing(self, name):
        assert fail("info", name) == f"subbit: error: no such file: {name}"


class TestExplain:
    def test_json(self):
        found = data("explain", "zoo:converted", "--input", SHAPE)
        assert [(layer["name"], layer["input_shape"]) for layer in found["layers"]] == [("2", [2, 8, 8, 8])]

    def test_text(self):
        save(converted(), "m.safetensors")
        text = succeed("explain", "m.safetensors", "--model", "zoo:dense", "--input", SHAPE)
        assert "1 call of sub-bit layers" in text

    def test_wrong_input(self):
        line = fail("explain", "zoo:converted", "--input", "1x4x10x10")
        assert "example_input must be an input of Sequential" in line

    def test_dense_models_are_converted_first(self):
        assert len(data("explain", "zoo:dense", "--input", SHAPE)["layers"]) == 1
