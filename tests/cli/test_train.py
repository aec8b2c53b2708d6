"""``subbit train``: what it writes, how it is stopped and resumed, what it refuses."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from cli_helpers import run
from image_files import write_idx

import subbit_infer
from subbit_infer import models
from subbit_infer.training import data as data_sets


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_idx(folder)
    return folder


def arguments(data, out, *more: str) -> list[str]:
    return ["train", "resnet20", "--data", str(data), "--out", str(out), "--epochs", "2", "--batch", "32", *more]


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
    plain = models.resnet20(int(activation_bits), num_classes=4, in_channels=1)
    model = subbit_infer.load(out / "model.safetensors", plain)
    images = data_sets.load(data)
    pixels = images.train.float() / 255
    with torch.no_grad():
        logits = model((images.test.float() / 255 - pixels.mean()) / pixels.std())
    right = (logits.argmax(1) == images.test_labels).float().mean().item() * 100
    assert right == pytest.approx(said["test_accuracy"], abs=100 / 16 + 1e-3)  # a tie may be rounded otherwise
    layers = [module for module in model.modules() if isinstance(module, subbit_infer.nn.SubbitConv2d)]
    assert [layer.tau for layer in layers] == [3] * 18


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
    while not (part / "log.csv").exists():  # the first epoch is done
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
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


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        (["--method", "magic"], 1, "method must be one of '1-bit'"),
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
