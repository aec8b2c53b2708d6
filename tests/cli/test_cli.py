"""The subbit command: results on stdout, one line on stderr where something is wrong, and no file then."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import UNIT_3X3, dense_weight, random_weight
from typer.testing import CliRunner

import subbit_infer
from subbit_infer import models, nn, save, save_weights
from subbit_infer.backends.cuda import runtime
from subbit_infer.cli import app
from subbit_infer.cli.exported import load_program

SHAPE = "2x3x10x10"
X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def dense() -> torch.nn.Sequential:
    """A model whose second convolution is sub-bit already."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3, padding=1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 10),
    )
    with torch.no_grad():
        model[2].weight.copy_(dense_weight(*random_weight(UNIT_3X3, 16, 8, 32)) * 0.25)
    return model.eval()


def converted() -> torch.nn.Sequential:
    model = dense()
    model[2] = nn.SubbitConv2d.from_dense(model[2])
    return model


ZOO = """
import sys
from test_cli import converted, dense
import torch

print("this goes to stderr")

class Model(torch.nn.Conv2d):
    def __init__(self):
        super().__init__(3, 8, 3)

instance = dense()

class OfOne(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = converted()

    def forward(self, x):
        if len(x) != 1:
            raise ValueError("one image at a time")
        return self.model(x)

def of_one():
    return OfOne()

def plain():
    return torch.nn.Conv2d(3, 8, 3)

def nothing():
    return None

def leaves():
    sys.exit(0)

def fails():
    raise KeyError("a key\\nof two lines")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A directory to be in, with a module of models."""
    (tmp_path / "zoo.py").write_text(ZOO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    monkeypatch.delitem(sys.modules, "zoo", raising=False)
    yield tmp_path
    sys.modules.pop("zoo", None)


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def data(*arguments: object) -> dict:
    """The JSON that a command prints."""
    return json.loads(succeed(*arguments, "--json"))


def fail(*arguments: object, status: int = 1) -> str:
    """The error line of a command, which leaves no file behind and prints nothing else."""
    before = {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    result = run(*arguments)
    errors = [line for line in result.stderr.splitlines() if line.startswith("subbit: error: ")]
    assert (result.exit_code, result.stdout, len(errors)) == (status, "", 1), result.stderr
    assert result.stderr.splitlines()[-1] == errors[0]
    assert "Traceback" not in result.stderr
    assert {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before
    return errors[0]


def export_program(path: str, model: torch.nn.Module | None = None, **options) -> None:
    torch.export.save(torch.export.export(model or dense(), (X,), **options), path)


class TestFrame:
    def test_help_names_every_command(self):
        text = succeed()
        assert text == succeed("--help")
        for command in ("info", "convert", "compress", "export", "bench", "explain", "env"):
            assert f"\n  {command} " in text
            assert "--json" in succeed(command, "--help")

    def test_help_says_what_a_pt2_file_may_do(self):
        assert "never to load one that is not trusted" in " ".join(succeed("convert", "--help").split())

    def test_version(self):
        assert succeed("--version") == f"{subbit_infer.__version__}\n"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nonsense"], "No such command 'nonsense'"),
            (["info"], "Missing argument 'FILE'"),
            (["info", "a.txt"], "a.txt must be a .safetensors or .onnx or .pt2 or .pt or .pth file"),
            (["convert", "zoo:dense"], "Missing option '-o'"),
            (["convert", "zoo:dense", "-o", "a.txt"], "-o must be a .safetensors or .pt2 or .onnx file"),
            (["convert", "zoo:dense", "-o", "a.pt2"], "a.pt2 needs --input"),
            (["convert", "zoo", "-o", "a.pt2"], "zoo must be a .onnx or .pt2 or .pt or .pth file, or package.module"),
            (["convert", "a.safetensors", "-o", "a.pt2"], "is converted already; subbit export"),
            (["convert", "zoo:dense", "-o", "a.safetensors", "--input", "1x0"], "--input must be sizes joined by x"),
            (["convert", "zoo:dense", "-o", "a.safetensors", "--input", "99999x99999"], "at most 2^31 elements"),
            (["convert", "zoo:dense", "-o", "a.safetensors", "--fold", "--input", "1"], "which .safetensors cannot"),
            (["export", "a.safetensors", "-o", "a.pt2", "--input", "1"], "a.safetensors needs --model"),
            (["export", "zoo:converted", "-o", "a.pt2", "--input", "1", "--model", "resnet18"], "takes no --model"),
            (["explain", "zoo:converted"], "explain needs --input"),
            (["bench", "zoo:converted"], "bench needs --input"),
            (["bench", "zoo:converted", "--rounds", "0"], "Invalid value for '--rounds'"),
            (
                ["bench", "zoo:converted", "--input", SHAPE, "--device", "tpu"],
                "--device must be cpu, cuda or cuda:N, got",
            ),
            (["explain", "zoo:converted", "--input", SHAPE, "--device", "cuda:99"], "CUDA devices, got cuda:99"),
            (["bench", "m.pt2", "--half"], "--device and --half are not for m.pt2"),
        ],
    )
    def test_wrong_command_lines_end_with_status_2(self, arguments, message):
        assert message in fail(*arguments, status=2)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("zoo:nothing", "must give a torch.nn.Module, got NoneType"),
            ("zoo:leaves", "zoo:leaves cannot be called: SystemExit: 0"),
            ("zoo:fails", "KeyError: 'a key"),
            ("zoo:missing", "has no attribute 'missing'"),
            ("no_such_module:f", "No module named 'no_such_module'"),
            ("zoo:plain", "has no sub-bit layer"),
        ],
    )
    def test_bad_callables(self, source, message):
        assert message in fail("export", source, "-o", "a.pt2", "--input", SHAPE)

    def test_debug_shows_the_traceback(self, monkeypatch):
        monkeypatch.setenv("SUBBIT_DEBUG", "1")
        result = run("info", "missing.safetensors")
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1] == "subbit: error: no such file: missing.safetensors"

    def test_a_real_process(self, folder):
        arguments = [sys.executable, "-m", "subbit_infer"]
        done = subprocess.run([*arguments, "env", "--json"], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["subbit_infer"] == subbit_infer.__version__
        assert done.stderr == ""
        done = subprocess.run([*arguments, "info", "zoo.py"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("subbit: error: zoo.py must be")


class TestEnv:
    def test_json(self, monkeypatch):
        monkeypatch.setenv("SUBBIT_JIT", "0")
        found = data("env")
        assert found["torch"] == torch.__version__
        assert found["active_level"] in found["levels"]
        assert found["threads"] == torch.get_num_threads()
        assert found["jit"] is False
        assert found["variables"]["SUBBIT_JIT"] == "0"
        assert found["cuda"]["built"] == runtime.info()["built"]
        assert found["cuda"]["reason"]
        assert set(found["optional"]) == {"onnx", "onnxscript", "onnxruntime", "onnxruntime-extensions"}

    def test_text_of_cuda(self, monkeypatch):
        info = {"reason": None, "torch": "13.0", "built": True, "cuda": "13.0", "architectures": [80, 90]}
        devices = [{"name": "H100", "supported": True}, {"name": "V100", "supported": False}]
        monkeypatch.setattr(runtime, "info", lambda: {**info, "devices": devices})
        assert "kernels for sm_80, sm_90 (CUDA 13.0); H100, V100, which they are not for" in succeed("env")
        monkeypatch.setattr(runtime, "info", lambda: {**info, "reason": "no driver", "devices": []})
        assert "(CUDA 13.0); not used: no driver" in succeed("env")

    def test_text_says_how_to_install(self, monkeypatch):
        monkeypatch.setattr("subbit_infer.cli.env.version", lambda name: _version(name))
        text = succeed("env")
        assert "onnxruntime-extensions  missing, for our kernels in ONNX Runtime: pip install" in text
        assert "not used: " in text


def _version(name: str) -> str:
    if name.startswith("onnx"):
        raise sys.modules["importlib.metadata"].PackageNotFoundError
    return "1"


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


class TestBench:
    def test_converted_alone(self):
        found = data("bench", "zoo:converted", "--input", SHAPE, "--rounds", 2)
        assert set(found["milliseconds"]) == {"converted"}
        assert found["milliseconds"]["converted"] > 0
        assert (found["threads"], found["rounds"]) == (1, 2)

    def test_converted_program_knows_its_input(self):
        export_program("m.pt2", converted())
        assert "converted" in succeed("bench", "m.pt2", "--rounds", 2)

    def test_threads_are_put_back(self):
        before = torch.get_num_threads()
        assert data("bench", "zoo:converted", "--input", SHAPE, "--rounds", 1, "--threads", 2)["threads"] == 2
        assert torch.get_num_threads() == before

    @pytest.mark.parametrize("source", ["zoo:dense", "m.pt2"])
    def test_against_the_original(self, source):
        export_program("m.pt2")
        found = data("bench", source, "--input", SHAPE, "--rounds", 2)
        times = found["milliseconds"]
        assert found["speedup"] == pytest.approx(times["original"] / times["converted"])

    def test_half(self):
        found = data("bench", "zoo:dense", "--input", SHAPE, "--rounds", 2, "--half")
        assert (found["half"], found["device"]) == (True, "cpu")
        assert "1 thread, float16" in succeed("bench", "zoo:dense", "--input", SHAPE, "--rounds", 2, "--half")

    def test_nothing_to_convert(self):
        assert "nothing to convert: none of 1 layer of zoo:plain" in fail("bench", "zoo:plain", "--input", SHAPE)

    def test_onnx(self):
        torch.onnx.export(dense(), (X,), "m.onnx", dynamo=True, verbose=False, external_data=False)
        assert set(data("bench", "m.onnx", "--rounds", 2)["milliseconds"]) == {"original", "converted"}


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


class Evil:
    """What a pickle makes of it: it leaves a file where it ran."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def pickled() -> bytes:
    content = io.BytesIO()
    torch.save({"state_dict": Evil()}, content)
    return content.getvalue()


RUNS = "__import__('os').mkdir('ran')"


def edited(change) -> None:
    """Writes bad.pt2, a good program whose parts are changed."""
    export_program("good.pt2", dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    with zipfile.ZipFile("good.pt2") as file:
        parts = {name: file.read(name) for name in file.namelist()}
    root = next(iter(parts)).split("/")[0]
    parts = {name.removeprefix(f"{root}/"): content for name, content in parts.items()}
    graph = json.loads(parts["models/model.json"])
    config = json.loads(parts["data/constants/model_constants_config.json"])
    change(parts, graph, config)
    parts.setdefault("models/model.json", b"")
    parts["models/model.json"] = json.dumps(graph).encode()
    parts["data/constants/model_constants_config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile("bad.pt2", "w") as file:
        for name, content in parts.items():
            file.writestr(f"{root}/{name}", content)


def first_node(graph):
    return graph["graph_module"]["graph"]["nodes"][0]


def rename_input(graph, name: str) -> None:
    text = json.dumps(graph["graph_module"])
    graph["graph_module"] = json.loads(text.replace('"input"', json.dumps(name)))


def constant(path: str, config) -> None:
    config["config"]["c"] = {"path_name": path, "is_param": False, "use_pickle": True, "tensor_meta": None}


ATTACKS = {
    "inputs": lambda parts, graph, config: parts.update({"data/sample_inputs/model.pt": pickled()}),
    "old weights": lambda parts, graph, config: parts.update({"data/weights/model.pt": pickled()}),
    "pickled constant": lambda parts, graph, config: (
        parts.update({"data/constants/tensor_0": pickled()}),
        constant("tensor_0", config),
    ),
    "object": lambda parts, graph, config: (
        parts.update({"data/constants/opaque_obj_0": pickle.dumps(Evil())}),
        constant("opaque_obj_0", config),
    ),
    "object in capitals": lambda parts, graph, config: (
        parts.update({"data/constants/OPAQUE_OBJ_0": pickle.dumps(Evil())}),
        constant("opaque_obj_0", config),
    ),
    "size": lambda parts, graph, config: graph["graph_module"]["graph"]["tensor_values"]["input"]["sizes"].__setitem__(
        0, {"as_expr": {"expr_str": RUNS, "hint": {"as_int": 2}}}
    ),
    "size called metadata": lambda parts, graph, config: graph["graph_module"]["graph"]["sym_int_values"].update(
        {"metadata": {"as_expr": {"expr_str": RUNS, "hint": {"as_int": 2}}}}
    ),
    "guard": lambda parts, graph, config: graph.update(guards_code=[f"{RUNS} is None"]),
    "quoted guard": lambda parts, graph, config: graph.update(guards_code=[f"L['\"+{RUNS}+\"'].size()[0] <= 64"]),
    "name": lambda parts, graph, config: rename_input(graph, f"x={RUNS}"),
    "graph of another suffix": lambda parts, graph, config: parts.update(
        {"models/other.JSON": json.dumps(graph).replace("Symbol('", RUNS + "+Symbol('").encode()}
    ),
    "compiled": lambda parts, graph, config: parts.update({"data/aotinductor/model/m.so": b"\x7fELF"}),
    "function": lambda parts, graph, config: first_node(graph).update(target="torch.os.mkdir"),
    "file": lambda parts, graph, config: first_node(graph).update(target="torch.ops.aten.from_file.default"),
    "import": lambda parts, graph, config: graph["graph_module"]["module_call_graph"][0]["signature"].update(
        in_spec='[1, {"type": "collections.defaultdict", "context": "{\\"default_factory_module\\": \\"zoo\\"}"}]'
    ),
    "two parts of one name": lambda parts, graph, config: parts.update({"Models/model.json": b"{}"}),
    "nested": lambda parts, graph, config: parts.update({"models/deep.json": b"[" * 100_000}),
    "future": lambda parts, graph, config: parts.update({"archive_version": b"99"}),
    "future graph": lambda parts, graph, config: graph["schema_version"].update(major=99),
    "no graph": lambda parts, graph, config: graph.clear(),
}


class TestHostile:
    @pytest.mark.parametrize("attack", ATTACKS)
    def test_programs(self, attack):
        edited(ATTACKS[attack])
        assert fail("convert", "bad.pt2", "-o", "n.pt2").startswith("subbit: error: bad.pt2")
        assert not Path("ran").exists()
        assert "zoo" not in sys.modules

    @pytest.mark.parametrize("attack", ["inputs", "size"])
    def test_the_attacks_are_real(self, attack):
        """Where torch alone no longer falls for them, our own checks may be less."""
        edited(ATTACKS[attack])
        with pytest.raises(Exception, match=r".*"):
            torch.export.load("bad.pt2")
        assert Path("ran").exists()

    def test_an_unchanged_program_is_read(self):
        edited(lambda *_: None)
        with torch.no_grad():
            assert torch.equal(load_program(Path("bad.pt2")).module()(X), dense()(X))

    @pytest.mark.parametrize("command", [["info"], ["convert", "-o", "n.pt2"]])
    @pytest.mark.parametrize("keep", [0, 10, 1000, -10])
    def test_truncated_programs(self, command, keep):
        export_program("m.pt2")
        Path("m.pt2").write_bytes(Path("m.pt2").read_bytes()[:keep])
        assert "is not an exported program" in fail(*command, "m.pt2")

    def test_archives_that_unpack_to_more(self):
        with zipfile.ZipFile("m.pt2", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("m/models/model.json", b"0" * 2**26)
        assert "unpacks to more" in fail("info", "m.pt2")

    def test_pickles(self):
        Path("m.pt").write_bytes(pickled())
        Path("m.pth").write_bytes(pickle.dumps({"state_dict": Evil()}))
        Path("m.safetensors").write_bytes(pickled())
        Path("m.pt2").write_bytes(pickled())
        for path in ("m.pt", "m.pth", "m.safetensors", "m.pt2"):
            fail("info", path)
        for path in ("m.pt", "m.pth", "m.pt2"):
            fail("convert", path, "-o", "n.pt2", "--input", SHAPE)
        fail("explain", "m.safetensors", "--model", "zoo:dense", "--input", SHAPE)
        assert not Path("ran").exists()

    def test_files_from_the_future(self):
        save(converted(), "m.safetensors")
        content = Path("m.safetensors").read_bytes()
        Path("m.safetensors").write_bytes(content.replace(b'"version":"1"', b'"version":"2"'))
        for command in (["info"], ["explain", "--model", "zoo:dense", "--input", SHAPE]):
            assert "version 2: made by a newer subbit_infer; update" in fail(*command, "m.safetensors")


def test_ordered_dicts_go_through_pytree_specs():
    """What models return may be a dict: its spec is read without an import."""

    class Model(torch.nn.Module):
        def forward(self, x):
            return collections.OrderedDict(a=x + 1, b={"c": x})

    export_program("m.pt2", Model())
    assert set(load_program(Path("m.pt2")).module()(X)) == {"a", "b"}
