"""``subbit train``: what it writes, how it is stopped and resumed, what it refuses."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from cli_helpers import run
from image_files import write_idx

import subbit_infer
from subbit_infer import models
from subbit_infer.cli.tensorboard import scalars
from subbit_infer.training import data as data_sets


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_idx(folder)
    return folder


def arguments(data, out, *more: str) -> list[str]:
    return ["train", "resnet8", "--data", str(data), "--out", str(out), "--epochs", "2", "--batch", "32", *more]


@pytest.mark.parametrize("activation_bits", ["32", "1"])
def test_a_network(data, tmp_path, activation_bits):
    out = tmp_path / "new" / "run"
    result = run(*arguments(data, out, "--tau", "3", "--activation-bits", activation_bits, "--json"))
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.safetensors", "log.csv", "model.safetensors"]
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in said["log"]]
    assert len(rows) == 2
    plain = models.resnet8(int(activation_bits), num_classes=4, in_channels=1)
    model = subbit_infer.load(out / "model.safetensors", plain)
    images = data_sets.load(data)
    pixels = images.train.float() / 255
    with torch.no_grad():
        logits = model((images.test.float() / 255 - pixels.mean()) / pixels.std())
    right = (logits.argmax(1) == images.test_labels).float().mean().item() * 100
    assert right == pytest.approx(said["test_accuracy"], abs=100 / 16 + 1e-3)  # a tie may be rounded otherwise
    layers = [module for module in model.modules() if isinstance(module, subbit_infer.nn.SubbitConv2d)]
    assert [layer.tau for layer in layers] == [3] * 6
    notes = subbit_infer.files.inspect(out / "model.safetensors").notes
    assert (notes["network"], notes["method"], notes["seed"]) == ("resnet8", "clustered", "0")
    assert notes["accuracy"] == f"{said['test_accuracy']:.2f} % of {len(images.test)} test images"


def test_a_1_bit_network_has_nothing_to_pack(data, tmp_path):
    result = run(*arguments(data, tmp_path / "run", "--method", "1-bit"))
    assert result.exit_code == 0, result.stderr
    assert "A 1-bit network has no codebook to pack." in result.stdout
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_ctrl_c_leaves_a_checkpoint_and_resuming_ends_the_same(data, tmp_path):
    long = ["--epochs", "3", "--batch", "8"]  # the last of an option counts
    whole = tmp_path / "whole"
    assert run(*arguments(data, whole, *long)).exit_code == 0
    part = tmp_path / "part"
    command = [sys.executable, "-m", "subbit_infer", *arguments(data, part, *long)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    errors = interrupt(process, part)
    assert process.returncode == 130, errors
    assert "--resume goes on from" in errors
    assert not (part / "model.safetensors").exists()
    again = run(*arguments(data, part, *long))
    assert again.exit_code == 2
    assert "exists: --resume goes on from it" in again.stderr
    assert run(*arguments(data, part, *long, "--resume")).exit_code == 0
    assert (part / "log.csv").read_text() == (whole / "log.csv").read_text()
    ours, theirs = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (part, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def interrupt(process: subprocess.Popen[str], out: Path) -> str:
    """Sends Ctrl-C after the first epoch; what the process then says on stderr."""
    while not (out / "log.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=300)[1]


class TestTorchrun:
    TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    MORE = ("--batch", "8", "--tau", "3", "--epochs")

    def start(self, data, out, *more: str) -> subprocess.Popen[str]:
        command = [*self.TORCHRUN, "-m", "subbit_infer", *arguments(data, out, *self.MORE, *more)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def test_ctrl_c_and_resuming(self, data, tmp_path):
        whole, part = tmp_path / "whole", tmp_path / "part"
        process = self.start(data, whole, "4", "--json")
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert json.loads(said)["ranks"] == 2  # once, by rank 0
        assert errors.count("epoch 4 of 4") == 1

        process = self.start(data, part, "4")
        errors = interrupt(process, part)
        assert process.returncode != 0
        assert errors.count("--resume goes on from") == 1
        assert sorted(path.name for path in part.iterdir()) == ["checkpoint.safetensors", "log.csv"]
        alone = run(*arguments(data, part, *self.MORE, "4", "--resume"))
        assert (alone.exit_code, "must be of a run with ranks = 1, got 2" in alone.stderr) == (1, True)

        process = self.start(data, part, "4", "--resume")
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert (part / "log.csv").read_text() == (whole / "log.csv").read_text()

    def test_a_rank_that_fails_ends_the_others(self, data, tmp_path):
        (tmp_path / "run" / "log.csv").mkdir(parents=True)  # rank 0 cannot write it
        process = self.start(data, tmp_path / "run", "1000")
        _, errors = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "subbit: error: path must name a file" in errors


def test_the_two_stages(data, tmp_path):
    teacher, first, second = (tmp_path / name for name in ("teacher", "first", "second"))
    result = run(*arguments(data, teacher, "--method", "float"))
    assert result.exit_code == 0, result.stderr
    assert "A float network has no codebook to pack." in result.stdout
    stage = ("--recipe", "two-stage", "--activation-bits", "1", "--teacher", str(teacher), "--epochs", "1", "--json")
    result = run(*arguments(data, first, *stage, "--method", "float"))
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["recipe"]["weight_decay"] == 1e-5
    assert len(said["teacher"]) == 64
    assert not (first / "model.safetensors").exists()
    result = run(*arguments(data, second, *stage, "--method", "snn", "--start", str(first / "checkpoint.safetensors")))
    assert result.exit_code == 0, result.stderr
    cold = run(*arguments(data, tmp_path / "cold", *stage, "--method", "snn"))
    assert json.loads(cold.stdout)["log"] != json.loads(result.stdout)["log"]
    assert (second / "model.safetensors").exists()

    other = tmp_path / "other"
    result = run(*arguments(data, other, "--teacher", str(first)))
    assert result.exit_code == 1
    assert (
        "must be of a run of method 'float' with 32 activation bits to be a teacher, got ('float', 1)" in result.stderr
    )
    result = run(*arguments(data, other, "--start", str(tmp_path)))
    assert (result.exit_code, "no such file" in result.stderr) == (1, True)
    assert not other.exists()


class TestTensorboard:
    def test_it_is_asked_for_where_it_is_missing(self, data, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        result = run(*arguments(data, tmp_path / "run", "--tensorboard"))
        assert (result.exit_code, "--tensorboard needs TensorBoard: pip install tensorboard" in result.stderr) == (
            1,
            True,
        )
        assert not (tmp_path / "run").exists()

    def test_what_is_written(self, tmp_path, monkeypatch):
        written = []

        class Writer:
            def __init__(self, folder):
                assert folder == tmp_path

            def __enter__(self):
                return self

            def __exit__(self, *error):
                written.append("closed")

            def add_scalar(self, *scalar):
                written.append(scalar)

            def flush(self):
                written.append("flushed")

        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
        with scalars(tmp_path) as write:
            write({"epoch": 3, "loss": 0.5, "test_accuracy": 90.0})
        assert written == [("loss", 0.5, 3), ("test_accuracy", 90.0, 3), "flushed", "closed"]


def test_devices(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    result = run(*arguments(data, tmp_path / "run", "--device", "cuda"))
    assert (result.exit_code, "must be one of this machine's 0 CUDA devices, got cuda" in result.stderr) == (2, True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    result = run(*arguments(data, tmp_path / "run", "--device", "cuda"))
    assert (result.exit_code, "must be one of this machine's 0 CUDA devices, got cuda:1" in result.stderr) == (2, True)
    result = run(*arguments(data, tmp_path / "run", "--device", "cuda:0"))
    assert (result.exit_code, "must be cpu or cuda under torchrun, got 'cuda:0'" in result.stderr) == (2, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        (["--method", "magic"], 1, "method must be one of 'float', '1-bit'"),
        (["--tau", "9"], 1, "tau must be an int from 1 to 8, got 9"),
        (["--recipe", "magic"], 1, "recipe must be one of 'paper', 'two-stage'"),
        (["--batch", "65"], 1, "batch must be 1 to the 64 training images, got 65"),
        (["--resume"], 2, "which does not exist"),
    ],
)
def test_what_is_refused(data, tmp_path, changes, status, message):
    result = run(*arguments(data, tmp_path / "run", *changes))
    assert result.exit_code == status
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_networks_and_data_that_do_not_exist_or_go_together(data, tmp_path):
    result = run("train", "resnet19", "--data", str(data), "--out", str(tmp_path / "run"))
    assert (result.exit_code, "network must be one of" in result.stderr) == (2, True)
    result = run("train", "reactnet18", "--data", str(data), "--out", str(tmp_path / "run"))
    assert (result.exit_code, "activation_bits of reactnet18 must be 1, got 32" in result.stderr) == (2, True)
    result = run(*arguments(tmp_path, tmp_path / "run"))
    assert (result.exit_code, "dataset-fashion-mnist" in result.stderr) == (1, True)
