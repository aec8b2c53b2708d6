"""What a command takes: files of four kinds, Python callables, names of our models, and sizes of inputs."""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.export import ExportedProgram

from subbit_infer import formats as files
from subbit_infer import models
from subbit_infer.cli.exported import load_program
from subbit_infer.cli.screen import UsageError, note, working
from subbit_infer.nn import SubbitConv2d, SubbitLinear

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet18": models.resnet18,
    "resnet34": models.resnet34,
    "resnet50": models.resnet50,
    "vgg_small": models.vgg_small,
    "reactnet18": models.reactnet18,
}
"""The networks of this package, by name; their weights are random."""

SUFFIXES = (".safetensors", ".onnx", ".pt2", ".pt", ".pth")
_CALLABLE = re.compile(r"[\w.]+:[\w.]+")
_MOST_ELEMENTS = 2**31

Source = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A file (.onnx, .pt2, .safetensors, or .pt/.pth of the published training code); package.module:callable, "
        "which is called without arguments and gives a torch.nn.Module; or one of " + ", ".join(NETWORKS) + ".",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", help="Shape of an input, as 1x3x224x224; once for each positional argument."),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", help="What a .safetensors file is loaded into: package.module:callable or a network's name."
    ),
]

Device = Annotated[str, typer.Option("--device", help="Where it runs: cpu, cuda or cuda:1.")]


def suffix_of(source: str) -> str:
    """The suffix of a file; "" for a callable or a name."""
    return "" if is_code(source) else Path(source).suffix.lower()


def is_code(source: str) -> bool:
    """Whether the source names a model that Python code makes, rather than a file."""
    return source in NETWORKS or (bool(_CALLABLE.fullmatch(source)) and not Path(source).exists())


def check_file(path: str, suffixes: Sequence[str] = SUFFIXES) -> Path:
    """The path of a file that exists.

    Raises:
        UsageError: it has none of these suffixes.
        FileNotFoundError: there is no such file.
    """
    if Path(path).suffix.lower() not in suffixes:
        raise UsageError(f"{path} must be a {' or '.join(suffixes)} file, or package.module:callable")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    return Path(path)


def example_inputs(shapes: Sequence[str] | None) -> tuple[Tensor, ...] | None:
    """Random inputs of these shapes, the same every time; None without any.

    Raises:
        UsageError: one is not a shape.
    """
    if not shapes:
        return None
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(_shape(text), generator=generator) for text in shapes)


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d{0,9}(x[1-9]\d{0,9}){0,7}", text):
        raise UsageError(f"--input must be sizes joined by x, as 1x3x224x224, got {text!r}")
    shape = tuple(map(int, text.split("x")))
    if math.prod(shape) > _MOST_ELEMENTS:
        raise UsageError(f"--input must have at most 2^31 elements, got {text}")
    return shape


def device_of(text: str) -> torch.device:
    """The device of ``--device``.

    Raises:
        UsageError: there is no such device here.
    """
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", text):
        raise UsageError(f"--device must be cpu, cuda or cuda:N, got {text!r}")
    device = torch.device(text)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device must be one of this machine's {torch.cuda.device_count()} CUDA devices, got {text}")
    return device


def build(source: str) -> nn.Module:
    """The module, in evaluation mode, that a callable or one of our models gives.

    Raises:
        UsageError: it is neither.
        ValueError: the module cannot be imported, has no such callable, or the callable returns no module.
    """
    with working(f"Making {source}"):
        if source in NETWORKS:
            note(f"{source} has random weights.")
            return NETWORKS[source]()
        if not _CALLABLE.fullmatch(source):
            raise UsageError(f"the model must be package.module:callable or {', '.join(NETWORKS)}, got {source!r}")
        module_name, _, attribute = source.partition(":")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            made: Any = importlib.import_module(module_name)
            for name in attribute.split("."):
                made = getattr(made, name)
            made = made if isinstance(made, nn.Module) else made()
        except (Exception, SystemExit) as error:  # it is the user's code
            if os.environ.get("SUBBIT_DEBUG", "") not in ("", "0"):
                raise
            raise ValueError(f"{source} cannot be called: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"{source} must give a torch.nn.Module, got {type(made).__name__}")
    return made.eval()


def read_module(source: str, model: str | None) -> nn.Module:
    """The module of a callable, a .safetensors file (with ``model``) or a checkpoint of the published training code.

    Raises:
        UsageError: ``model`` is missing, or not wanted.
        FileNotFoundError, ValueError: the file or the callable is bad.
    """
    if (suffix_of(source) == ".safetensors") != (model is not None):
        needed = "needs --model, what it is loaded into" if model is None else "takes no --model"
        raise UsageError(f"{source} {needed}")
    if is_code(source):
        return build(source)
    path = check_file(source, (".safetensors", ".pt", ".pth"))
    if path.suffix.lower() == ".safetensors":
        target = build(str(model))
        with working(f"Reading {source}"):
            return files.load(path, target)
    from subbit_infer.formats import checkpoint

    with working(f"Reading {source}"):
        made: nn.Module = checkpoint.snn_model(path).model
    return made


def read_program(source: str) -> ExportedProgram:
    """The exported program of a .pt2 file."""
    path = check_file(source, (".pt2",))
    with working(f"Reading {source}"):
        return load_program(path)


def has_subbit_layers(module: nn.Module) -> bool:
    """Whether it is already converted."""
    return any(isinstance(layer, SubbitConv2d | SubbitLinear) for layer in module.modules())
