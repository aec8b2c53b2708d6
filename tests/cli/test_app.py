"""The subbit command itself: results on stdout, one line on stderr where something is wrong, and no file then."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from cli_helpers import SHAPE, data, fail, run, succeed

import subbit_infer
from subbit_infer.backends.cuda import runtime


def _version(name: str) -> str:
    if name.startswith("onnx"):
        raise sys.modules["importlib.metadata"].PackageNotFoundError
    return "1"


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
