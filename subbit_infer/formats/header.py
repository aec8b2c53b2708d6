"""The header of a model's file: the sub-bit layers, each as an entry of JSON, and the tensors' shapes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from subbit_infer.core import weight as weights
from subbit_infer.core.bits import byte_count
from subbit_infer.core.codebook import MAX_CODEWORDS, tau_of
from subbit_infer.core.safetensors_io import check_format, json_object
from subbit_infer.nn import SubbitConv2d, SubbitLinear

FORMAT = "subbit_infer.model"
FORMAT_VERSION = 1

SubbitLayer = SubbitConv2d | SubbitLinear
_SIZES = ("in_channels", "out_channels", "codewords", "tau")
GEOMETRY = ("stride", "padding", "dilation", "groups")
MODES = ("activation_bits", "sign_zero", "activation", "output", "pack_sign_zero")
_VECTORS = ("scale", "bias", "slope", "shift", "pack_shift")
BODY = ("packed_indices", "packed_codebook")
_MOST = 2**31  # sizes, strides, paddings and dilations are below


def key_of(layer: str, tensor: str) -> str:
    """The name of a layer's tensor in the model's state_dict; the model's own name is empty."""
    return f"{layer}.{tensor}" if layer else tensor


def some(names: Iterable[str]) -> str:
    """The first few of many names."""
    names = list(names)
    return ", ".join(map(repr, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def describe(layer: SubbitLayer) -> dict[str, Any]:
    """A layer's entry of the metadata."""
    entry: dict[str, Any]
    if isinstance(layer, SubbitConv2d):
        entry = {"kind": "conv2d", "in_channels": layer.in_channels, "out_channels": layer.out_channels}
        entry |= {key: getattr(layer, key) for key in GEOMETRY}
    else:
        entry = {"kind": "linear", "in_channels": layer.in_features, "out_channels": layer.out_features}
    entry |= {key: getattr(layer, key) for key in ("unit", "codewords", "tau", *MODES)}
    entry["vectors"] = [name for name in _VECTORS if getattr(layer, name) is not None]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in entry.items()}


def _is_int(value: object, least: int = 1) -> bool:
    return type(value) is int and least <= value < _MOST


def is_ints(value: object, count: int, least: int) -> bool:
    """Whether a JSON value is a list of ``count`` integers, each in [least, 2^31)."""
    return isinstance(value, list) and len(value) == count and all(_is_int(v, least) for v in value)


def _check_entry(path: str | os.PathLike[str], name: str, entry: object) -> None:
    """Checks a layer's entry of the metadata field by field; the layer's constructor checks what the values mean."""
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: layer {name!r} must be a JSON object, got {type(entry).__name__}")
    kind = entry.get("kind")
    rules: dict[str, Any] = {"kind": lambda v: v in ("conv2d", "linear")}
    rules |= dict.fromkeys(_SIZES, _is_int)
    rules |= dict.fromkeys(("activation", "output"), lambda v: isinstance(v, str))
    rules |= dict.fromkeys(("activation_bits", "sign_zero", "pack_sign_zero"), lambda v: _is_int(v, 0))
    rules["unit"] = lambda v: is_ints(v, 3, 1) and (kind == "conv2d" or v[1:] == [1, 1])
    rules["vectors"] = lambda v: isinstance(v, list) and v == [vector for vector in _VECTORS if vector in v]
    if kind == "conv2d":
        rules["groups"] = _is_int
        rules |= dict.fromkeys(("stride", "dilation"), lambda v: _is_int(v) or is_ints(v, 2, 1))
        rules["padding"] = lambda v: v in ("same", "valid") or _is_int(v, 0) or is_ints(v, 2, 0)
    if entry.keys() != rules.keys():
        odd = sorted(map(str, entry.keys() ^ rules.keys()))
        raise ValueError(f"{path}: layer {name!r} must have the fields of its kind, missing or unknown are {some(odd)}")
    for field, holds in rules.items():
        if not holds(entry[field]):
            raise ValueError(f"{path}: layer {name!r} has a wrong {field}: {str(entry[field])[:80]!r}")
    if entry["codewords"] > MAX_CODEWORDS or entry["tau"] != tau_of(entry["codewords"]):
        raise ValueError(
            f"{path}: layer {name!r} must have at most {MAX_CODEWORDS} codewords and tau = ceil(log2(codewords)), "
            f"got {entry['codewords']} and {entry['tau']}"
        )
    groups = entry.get("groups", 1)
    if entry["in_channels"] % (groups * entry["unit"][0]) or entry["out_channels"] % groups:
        raise ValueError(f"{path}: layer {name!r} must have channels that divide by its groups and units")


def units_of(entry: Mapping[str, Any]) -> int:
    """Units per output channel."""
    return cast("int", entry["in_channels"] // (entry.get("groups", 1) * entry["unit"][0]))


def body_shapes(entry: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's packed tensors."""
    g, kh, kw = entry["unit"]
    row_bytes = byte_count(units_of(entry) * entry["tau"])
    return {
        "packed_indices": (entry["out_channels"], row_bytes),
        "packed_codebook": (byte_count(entry["codewords"] * g * kh * kw),),
    }


@dataclass(frozen=True)
class Header:
    """The header of a model's file, checked: layers, and shapes and layout of the tensors."""

    path: str | os.PathLike[str]
    layers: dict[str, dict[str, Any]]
    shared: dict[str, str]
    orders: dict[str, list[int]]
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of_file(cls, path: str | os.PathLike[str], file: Any) -> Header:
        """Reads and checks the header of an open file.

        Raises:
            ValueError: it breaks a rule; the message names the file, the layer or tensor, and the rule.
        """
        metadata = file.metadata() or {}
        if metadata.get("format") == weights.FORMAT:
            raise ValueError(f"{path} holds weights, not a model; read it with subbit_infer.load_weights")
        check_format(path, metadata, FORMAT, FORMAT_VERSION)
        layers, shared, orders = (json_object(path, metadata, key) for key in ("layers", "shared", "orders"))
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        for name, stored in shared.items():
            if not isinstance(stored, str) or stored not in shapes or name in shapes:
                raise ValueError(f"{path}: the tensor {name!r} must share one of the file's, got {str(stored)[:80]!r}")
        for name, order in orders.items():
            if name not in shapes or not is_ints(order, len(shapes[name]), 0) or sorted(order) != [*range(len(order))]:
                raise ValueError(f"{path}: the order of {name!r} must be one of a tensor's dimensions, got {order!r}")
        header = cls(path, layers, shared, orders, shapes)
        for name, entry in layers.items():
            _check_entry(path, name, entry)
            header._check_sizes(name, entry)
        return header

    def _shape(self, name: str) -> tuple[int, ...] | None:
        return self.shapes.get(self.shared.get(name, name))

    def _check_sizes(self, layer: str, entry: Mapping[str, Any]) -> None:
        """Checks the sizes of an entry against the tensors present, whose sizes fit the file."""
        shapes = body_shapes(entry) | dict.fromkeys(entry["vectors"], (entry["out_channels"],))
        for part, expected in shapes.items():
            if (given := self._shape(key_of(layer, part))) != expected:
                raise ValueError(f"{self.path}: {key_of(layer, part)!r} must have shape {expected}, got {given}")

    def check_fits(self, target: Mapping[str, Tensor]) -> None:
        """Checks that the file holds exactly the tensors of a state_dict, in their shapes."""
        held = self.shapes.keys() | self.shared.keys()
        if missing := [name for name in target if name not in held]:
            raise ValueError(f"{self.path} lacks tensors of the model: {some(missing)}")
        if unexpected := sorted(held - target.keys()):
            raise ValueError(f"{self.path} holds tensors that the model lacks: {some(unexpected)}")
        for name, tensor in target.items():
            if not isinstance(tensor, Tensor) or nn.parameter.is_lazy(tensor):
                raise ValueError(f"model must have a state_dict of tensors with shapes, {name!r} is another")
            if (given := self._shape(name)) != tuple(tensor.shape):
                raise ValueError(
                    f"{self.path}: {name!r} must have the shape {tuple(tensor.shape)} of the model's, got {given}"
                )

    def read(self, file: Any, name: str) -> Tensor:
        """A tensor of the file in its own memory, with its dimensions in the order that they had."""
        tensor: Tensor = file.get_tensor(name)
        order = self.orders.get(name)
        if order is None:
            return tensor.clone()
        back = [order.index(dimension) for dimension in range(len(order))]
        return tensor.permute(order).clone(memory_format=torch.contiguous_format).permute(back)
