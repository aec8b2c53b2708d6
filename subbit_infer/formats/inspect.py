"""What a file holds and how large it is, against the paper's formula."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from subbit_infer.core import weight as weights
from subbit_infer.core.bits import byte_count
from subbit_infer.core.codebook import MAX_CODEWORDS, tau_of
from subbit_infer.core.safetensors_io import check_format, json_object, reading
from subbit_infer.core.tables import Table, Tabular, as_json
from subbit_infer.formats.header import BODY, FORMAT_VERSION, Header, body_shapes, is_ints, key_of, units_of


@dataclass(frozen=True)
class LayerInfo:
    """One sub-bit layer, or packed weight, of a file.

    Attributes:
        name: of the layer in the model, or of the weight.
        kind: "conv2d", "linear", or "weight" where the file holds weights alone.
        shape: of the dense weight that it replaces: (C_out, C_in / groups, kh, kw).
        unit: (g, kh, kw), the part of the weight that one index stands for.
        codewords: size of the codebook.
        tau: bits per index.
        activation_bits: 1 or 32; None for a weight alone.
        body_bytes: bytes of its indices and its codebook, as stored.
        formula_bytes: those of tau bits per unit, as the paper counts: tau / 9 bits per weight of 3x3 kernels,
            tau / 8 of vectors of 8 channels.
    """

    name: str
    kind: str
    shape: tuple[int, int, int, int]
    unit: tuple[int, int, int]
    codewords: int
    tau: int
    activation_bits: int | None
    body_bytes: int
    formula_bytes: float


@dataclass(frozen=True)
class FileInfo(Tabular):
    """What :func:`inspect` found. It prints as a table, and shows as one in notebooks.

    Attributes:
        kind: "model" for a file of :func:`save`, "weights" for one of :func:`subbit_infer.save_weights`.
        version: of the format.
        layers: the sub-bit layers or weights, in order.
        body_bytes: bytes of all indices and codebooks; shared ones are counted once.
        formula_bytes: the paper's count of the same.
        other_bytes: bytes of all other tensors: scales, biases, dense layers, statistics.
        total_bytes: the file's size, including its header.
        notes: what was written into it by whoever saved it; nothing checks that it is so.
    """

    kind: str
    version: int
    layers: tuple[LayerInfo, ...]
    body_bytes: int
    formula_bytes: float
    other_bytes: int
    total_bytes: int
    notes: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as dicts, lists, strings and numbers, for JSON."""
        return as_json(self)

    def _parts(self) -> Iterator[str | Table]:
        count = len(self.layers)
        more = self.body_bytes / self.formula_bytes - 1 if self.formula_bytes else 0.0
        headings = ("layer", "kind", "weight", "unit", "tau", "act", "bytes", "formula")
        yield f"subbit_infer {self.kind}, format version {self.version}: {count} layer{'s' * (count != 1)}"
        yield Table(headings, [_row(layer) for layer in self.layers], right={"tau", "act", "bytes", "formula"})
        yield (
            f"Indices and codebooks {self.body_bytes:,} bytes, {more:.2%} over tau bits per unit; other tensors "
            f"{self.other_bytes:,}; the file {self.total_bytes:,}."
        )
        if self.notes:
            yield Table(("note", ""), list(self.notes.items()))


def inspect(path: str | os.PathLike[str]) -> FileInfo:
    """Reads what a file of :func:`save` or :func:`subbit_infer.save_weights` holds, without reading its tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file, or is corrupt or newer. Only :func:`load` checks the tensors' values.
    """
    with reading(path) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") == weights.FORMAT:
            check_format(path, metadata, weights.FORMAT, weights.FORMAT_VERSION)
            kind, version, entries = "weights", weights.FORMAT_VERSION, _weight_entries(path, file, metadata)
            shared: dict[str, str] = {}
            parts = ("indices", "codebook")
        else:
            header = Header.of_file(path, file)
            kind, version, entries, shared = "model", FORMAT_VERSION, header.layers, header.shared
            parts = BODY
        notes = json_object(path, metadata, "notes") if "notes" in metadata else {}
        if not all(isinstance(value, str) for value in notes.values()):
            raise ValueError(f"{path}: the metadata 'notes' must be strings by strings")
        sizes = {name: _nbytes(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    layers, body, formula = [], set(), {}
    for name, entry in entries.items():
        keys = [shared.get(key, key) for key in (key_of(name, part) for part in parts)]
        layer = _layer_info(name, entry, sum(sizes[key] for key in keys))
        layers.append(layer)
        body |= set(keys)
        formula[keys[0]] = layer.formula_bytes
    body_bytes = sum(sizes[key] for key in body)
    other_bytes = sum(sizes.values()) - body_bytes
    total_bytes = os.stat(path).st_size
    return FileInfo(kind, version, tuple(layers), body_bytes, sum(formula.values()), other_bytes, total_bytes, notes)


def _weight_entries(path: str | os.PathLike[str], file: Any, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The entries of a file of weights, in the form of a model's; the sizes are checked against its tensors."""
    keys = set(file.keys())
    entries = {}
    for name, shape in json_object(path, metadata, "weights").items():
        if not is_ints(shape, 5, 1) or shape[1] > MAX_CODEWORDS or not {f"{name}.indices", f"{name}.codebook"} <= keys:
            raise ValueError(f"{path}: weight {name!r} must have five sizes and its tensors, got {str(shape)[:80]}")
        units, codewords, g, kh, kw = shape
        outputs, *_ = given = tuple(file.get_slice(f"{name}.indices").get_shape()) or (0,)
        entry = {"kind": "weight", "in_channels": units * g, "out_channels": outputs, "unit": [g, kh, kw]}
        entry |= {"codewords": codewords, "tau": tau_of(codewords), "activation_bits": None}
        held = given, tuple(file.get_slice(f"{name}.codebook").get_shape())
        if held != (expected := tuple(body_shapes(entry).values())):
            raise ValueError(f"{path}: weight {name!r} must have tensors of shapes {expected}, got {held}")
        entries[name] = entry
    return entries


def _layer_info(name: str, entry: Mapping[str, Any], body_bytes: int) -> LayerInfo:
    g, kh, kw = entry["unit"]
    units, outputs = units_of(entry), entry["out_channels"]
    return LayerInfo(
        name=name,
        kind=entry["kind"],
        shape=(outputs, units * g, kh, kw),
        unit=(g, kh, kw),
        codewords=entry["codewords"],
        tau=entry["tau"],
        activation_bits=entry["activation_bits"],
        body_bytes=body_bytes,
        formula_bytes=outputs * units * entry["tau"] / 8,
    )


def _row(layer: LayerInfo) -> tuple[str, ...]:
    return (
        layer.name,
        layer.kind,
        "x".join(map(str, layer.shape)),
        "x".join(map(str, layer.unit)),
        str(layer.tau),
        str(layer.activation_bits or ""),
        f"{layer.body_bytes:,}",
        f"{layer.formula_bytes:,.0f}",
    )


_DTYPE_BITS = {"BOOL": 8, "C64": 64, "F4": 4}


def _nbytes(part: Any) -> int:
    """Bytes of a tensor by its header's entry; dtypes are named like F16, BF16, I64, U8, F8_E4M3."""
    dtype: str = part.get_dtype()
    bits = _DTYPE_BITS.get(dtype) or int("".join(filter(str.isdigit, dtype.partition("_")[0])))
    return byte_count(math.prod(part.get_shape()) * bits)
