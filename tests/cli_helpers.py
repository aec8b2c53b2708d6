"""Models and programs for tests of the subbit command, and what runs it in the test's process."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from helpers import UNIT_3X3, dense_weight, random_weight
from typer.testing import CliRunner

from subbit_infer import nn
from subbit_infer.cli import app

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
from cli_helpers import converted, dense
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
