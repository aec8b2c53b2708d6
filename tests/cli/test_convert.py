"""Files that the command writes: subbit convert, compress and export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_helpers import SHAPE, X, converted, data, dense, export_program, fail, run, succeed

import subbit_infer
from subbit_infer import models, save
from subbit_infer.cli.exported import load_program


class TestExport:
    def test_program_runs_in_a_fresh_process(self):
        model = converted()
        save(model, "m.safetensors")
        found = data("export", "m.safetensors", "--model", "zoo:dense", "-o", "m.pt2", "--input", SHAPE)
        assert found == {"output": "m.pt2", "bytes": os.stat("m.pt2").st_size}
        torch.save(X, "x.pt")
        code = (
            "import torch, subbit_infer; y = torch.export.load('m.pt2').module()(torch.load('x.pt')); "
            "torch.save(y.detach(), 'y.pt')"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        with torch.no_grad():
            torch.testing.assert_close(torch.load("y.pt"), model(X))

    def test_any_batch_size(self):
        result = run("export", "zoo:converted", "-o", "m.pt2", "--input", "1x3x10x10")
        assert "batch size" not in result.stderr
        program = load_program(Path("m.pt2"))
        with torch.no_grad():
            for x in (X, X[:1], X.repeat(4, 1, 1, 1)):
                torch.testing.assert_close(program.module()(x), converted()(x))
        assert program.example_inputs[0][0].shape == (1, 3, 10, 10)

    def test_a_batch_size_that_the_model_fixes(self):
        result = run("export", "zoo:of_one", "-o", "m.pt2", "--input", "1x3x10x10")
        assert "The batch size is fixed" in result.stderr
        with torch.no_grad():
            torch.testing.assert_close(load_program(Path("m.pt2")).module()(X[:1]), converted()(X[:1]))

    def test_one_of_our_networks_by_name(self):
        network = models.vgg_small()
        models.make_subbit_weights(network)
        save(models.to_subbit(network), "m.safetensors")
        succeed("export", "m.safetensors", "--model", "vgg_small", "-o", "m.pt2", "--input", "1x3x32x32")
        assert data("info", "m.pt2")["subbit_calls"] == {"conv2d.default": 5}

    def test_another_model(self):
        save(converted(), "m.safetensors")
        line = fail("export", "m.safetensors", "--model", "zoo:Model", "-o", "m.pt2", "--input", SHAPE)
        assert "the model has no layer '2'" in line

    def test_wrong_input(self):
        line = fail("export", "zoo:converted", "-o", "m.pt2", "--input", "1x4x10x10")
        assert "torch.export cannot trace Sequential" in line

    def test_a_failed_write_leaves_what_was_there(self, monkeypatch):
        Path("m.pt2").write_text("old")
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        assert fail("export", "zoo:converted", "-o", "m.pt2", "--input", SHAPE) == "subbit: error: disk full"

    def test_onnx(self):
        succeed("export", "zoo:converted", "-o", "m.onnx", "--input", SHAPE)
        assert sum(data("info", "m.onnx")["subbit_nodes"].values()) == 1


class TestConvert:
    def test_callable(self):
        result = run("convert", "zoo:dense", "-o", "m.safetensors", "--input", SHAPE, "--json")
        found = json.loads(result.stdout)
        assert "this goes to stderr" in result.stderr
        assert [layer["name"] for layer in found["layers"] if layer["unit"]] == ["2"]
        loaded = subbit_infer.load("m.safetensors", dense())
        with torch.no_grad():
            torch.testing.assert_close(loaded(X), dense()(X))

    def test_an_object_and_a_class_are_callables_too(self):
        succeed("convert", "zoo:instance", "-o", "m.safetensors")
        assert "nothing to convert" in fail("convert", "zoo:Model", "-o", "n.safetensors")

    def test_without_an_input_nothing_is_compared(self):
        result = run("convert", "zoo:dense", "-o", "m.safetensors")
        assert "Outputs are not compared" in result.stderr
        assert "--verify needs --input" in fail("convert", "zoo:dense", "-o", "n.safetensors", "--verify", status=2)

    @pytest.mark.parametrize("fold", [[], ["--fold"]])
    @pytest.mark.parametrize("source", ["zoo:dense", "m.pt2"])
    def test_program(self, source, fold):
        export_program("m.pt2")
        inputs = ["--input", SHAPE] if source == "zoo:dense" else []
        text = succeed("convert", source, "-o", "n.pt2", *inputs, *fold)
        assert f"Wrote n.pt2, {os.stat('n.pt2').st_size:,} bytes." in text
        assert sum(data("info", "n.pt2")["subbit_calls"].values()) == 1
        with torch.no_grad():
            torch.testing.assert_close(load_program(Path("n.pt2")).module()(X), dense()(X), rtol=1e-4, atol=1e-5)

    def test_dynamic_sizes_stay_dynamic(self):
        export_program("m.pt2", dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
        succeed("convert", "m.pt2", "-o", "n.pt2")
        x = torch.randn(5, 3, 10, 10)
        with torch.no_grad():
            torch.testing.assert_close(load_program(Path("n.pt2")).module()(x), dense()(x), rtol=1e-4, atol=1e-5)

    def test_nothing_to_convert(self):
        export_program("m.pt2", torch.nn.Conv2d(3, 8, 3))
        assert "nothing to convert" in fail("convert", "m.pt2", "-o", "n.pt2")
        line = fail("convert", "zoo:plain", "-o", "n.safetensors")
        assert "none of 1 layer of zoo:plain is sub-bit" in line
        assert "subbit compress" in line

    def test_the_source_is_never_written_over(self):
        export_program("m.pt2")
        os.link("m.pt2", "same.pt2")
        for out in ("m.pt2", "./m.pt2", "same.pt2"):
            assert "-o must be another file" in fail("convert", "m.pt2", "-o", out, status=2)

    def test_a_file_that_is_there_is_replaced(self):
        Path("m.safetensors").write_text("old")
        succeed("convert", "zoo:dense", "-o", "m.safetensors")
        assert data("info", "m.safetensors")["kind"] == "model"

    def test_checkpoint(self):
        from test_checkpoint import Network

        torch.save({"state_dict": Network((1, 1, 1, 1), 10, 3).state_dict()}, "c.pth")
        found = data("convert", "c.pth", "-o", "m.safetensors")
        assert [(layer["tau"], layer["activation_bits"]) for layer in found["layers"]] == [(3, 1)] * 4
        network = subbit_infer.checkpoint.snn_model("c.pth").model
        loaded = subbit_infer.load("m.safetensors", network)
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(loaded(x), network(x))
        line = fail("convert", "c.pth", "-o", "n.safetensors", "--fold", status=2)
        assert "--fold and --verify are not for checkpoints" in line

    def test_onnx(self):
        torch.onnx.export(dense(), (X,), "m.onnx", dynamo=True, verbose=False, external_data=False)
        found = data("convert", "m.onnx", "-o", "n.onnx")
        assert found["bytes"] == os.stat("n.onnx").st_size
        assert sum(data("info", "n.onnx")["subbit_nodes"].values()) == 1
        assert "nothing to convert" in fail("convert", "n.onnx", "-o", "o.onnx")
        Path("cut.onnx").write_bytes(Path("m.onnx").read_bytes()[:1000])
        fail("convert", "cut.onnx", "-o", "o.onnx")
        assert "not for .onnx files" in fail("convert", "m.onnx", "-o", "o.onnx", "--fold", status=2)


class TestCompress:
    @pytest.mark.parametrize("method", ["kmeans", "frequent"])
    def test_callable(self, method):
        found = data("compress", "zoo:instance", "-o", "m.safetensors", "--tau", 3, "--method", method)
        assert [layer["tau"] for layer in found["convert"]["layers"] if layer["unit"]] == [3]
        assert next(layer["error"] for layer in found["compress"]["layers"] if layer["unit"]) > 0
        assert data("info", "m.safetensors")["layers"][0]["tau"] == 3

    def test_bad_options(self):
        line = fail("compress", "zoo:dense", "-o", "m.safetensors", "--method", "magic", status=2)
        assert "--method must be frequent or kmeans" in line
        assert "Invalid value for '--tau'" in fail("compress", "zoo:dense", "-o", "m.safetensors", "--tau", 9, status=2)
        assert "MODEL must be package.module" in fail("compress", "m.pt2", "-o", "m.safetensors", status=2)

    def test_nothing_to_compress(self):
        assert "nothing to convert" in fail("compress", "zoo:plain", "-o", "m.safetensors")
