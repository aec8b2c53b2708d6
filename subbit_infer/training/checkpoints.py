"""Checkpoints of a training run: everything that the next step depends on, in one safetensors file.

The tensors are ``model.NAME``, those of the state_dict; ``optimizer.NUMBER.KEY``, the optimizer's by the number of the
parameter; and ``random.NAME``, states of random generators. The metadata hold ``format`` ("subbit_infer.training"),
``version`` ("1") and ``run``, a JSON object of what the run was asked for and how far it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from subbit_infer.core.atomic import replacing
from subbit_infer.core.safetensors_io import check_format, json_object, reading

FORMAT = "subbit_infer.training"
FORMAT_VERSION = 1


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generators: Mapping[str, torch.Generator],
    run: Mapping[str, Any],
) -> None:
    """Writes a checkpoint, replacing the file at once or leaving it as it was.

    Args:
        path: where to; the directory must exist.
        model: with prepared layers or without.
        optimizer: of the model's parameters.
        generators: random generators by name.
        run: what JSON can say.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
    tensors |= {f"random.{name}": generator.get_state() for name, generator in generators.items()}
    contiguous = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {"format": FORMAT, "version": str(FORMAT_VERSION), "run": json.dumps(dict(run))}
    with replacing(path) as temporary:
        safetensors.torch.save_file(contiguous, temporary, metadata)


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint's run was asked for and how far it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of a training, or one of another version.
    """
    with reading(path) as file:
        metadata = file.metadata() or {}
    check_format(path, metadata, FORMAT, FORMAT_VERSION)
    return json_object(path, metadata, "run")


def load_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generators: Mapping[str, torch.Generator],
) -> None:
    """Brings a run to where a checkpoint left it; everything is checked before anything changes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of a training, one of another version, or one of another network or optimizer.
    """
    read_run(path)
    with reading(path) as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no dict
    weights = _part(tensors, "model.")
    expected = model.state_dict()
    _check_same(path, "the network", {k: tuple(v.shape) for k, v in expected.items()}, weights)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "optimizer.").items():
        number, _, key = name.partition(".")
        if not number.isdecimal():
            raise ValueError(f"{path}: an optimizer's tensor must be named by a number, got {name!r}")
        moments.setdefault(int(number), {})[key] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for place, values in moments.items():
        if place >= len(parameters):
            raise ValueError(f"{path}: the optimizer must have {len(parameters)} parameters, got number {place}")
        shape = tuple(parameters[place].shape)
        for key, value in values.items():
            if value.dim() and tuple(value.shape) != shape:
                raise ValueError(f"{path}: {key} of parameter {place} must be {shape}, got {tuple(value.shape)}")
    states = _part(tensors, "random.")
    _check_same(path, "the run's generators", {k: tuple(g.get_state().shape) for k, g in generators.items()}, states)
    model.load_state_dict(weights)
    for place, values in moments.items():  # laid out as their parameters are, which is what steps are quick with
        for key, value in values.items():
            if value.dim():
                values[key] = torch.empty_like(parameters[place], dtype=value.dtype).copy_(value)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    for name, generator in generators.items():
        generator.set_state(states[name])


def load_weights(path: str | os.PathLike[str], model: nn.Module) -> dict[str, Any]:
    """Gives a network the weights that a finished run ended with: of prepared layers the latent ones.

    Args:
        path: of the checkpoint.
        model: the run's network, with plain layers; everything is checked before it changes.

    Returns:
        what the run was asked for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of a training, one of another version, of another network, or of a run that is
            not finished.
    """
    run = read_run(path)
    if "step" not in run or run["step"] != run.get("steps"):
        raise ValueError(f"{path} must be of a finished run, got step {run.get('step')} of {run.get('steps')}")
    with reading(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith("model.")}  # noqa: SIM118
    weights = {}
    for name, value in _part(tensors, "model.").items():
        plain = name.replace(".parametrizations.weight.original", ".weight")
        if not re.search(r"\.(parametrizations|sign)\.", plain):  # what only training needs
            weights[plain] = value
    _check_same(path, "the network", {k: tuple(v.shape) for k, v in model.state_dict().items()}, weights)
    model.load_state_dict(weights)
    return run


def fingerprint(model: nn.Module) -> str:
    """Tells networks of other weights apart: a SHA-256 of the state_dict, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_same(
    path: str | os.PathLike[str], whose: str, expected: dict[str, tuple[int, ...]], given: dict[str, Tensor]
) -> None:
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r} too"
        raise ValueError(f"{path} must be of {whose}, but {what}: it is another one's")
    for name, shape in expected.items():
        if tuple(given[name].shape) != shape:
            raise ValueError(f"{path}: {name!r} must have shape {shape}, got {tuple(given[name].shape)}")
