"""Checkpoints of the published training code of sub-bit networks, step 2: their weights, and the network they make.

There a layer has a latent ``weight`` (C_out, C_in, 3, 3) and ``binarize.patterns`` (2^tau, 9), and computes
``mean|weight|`` of the output channel times the nearest codeword of each latent kernel; a codeword is the sign of a
pattern. A sign that a pattern within 1e-3 of 0 had before is kept by that code, but not in the checkpoint: such signs
are *ambiguous*. Loading one there puts a random sign in their place; here it is that of the pattern, and listed.

Source: github.com/yikaiw/SNN, step2/birealnet.py and step2/modules (Wang et al., ICCV 2021, section 3).
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from subbit_infer.conversion.report import Converted, LayerReport, Report
from subbit_infer.core import codebook as codebooks
from subbit_infer.core.weight import PackedWeight
from subbit_infer.models.body import body_convs
from subbit_infer.models.reactnet import ReActNet
from subbit_infer.nn import SubbitConv2d

AMBIGUOUS_BELOW = 1e-3
"""The magnitude of a pattern below which its sign may be another in training."""

_PATTERNS = "binarize.patterns"
_STAGES = 4
_CHUNK_BYTES = 4 * 2**20  # of the differences that are compared at once
_LISTED = 8  # of a layer's ambiguous signs, or of keys in an error; the others are counted


@dataclass(frozen=True)
class AmbiguousSign:
    """A sign that the checkpoint does not determine.

    Attributes:
        codeword: its index in the codebook.
        tap: 0 to 8, row by row.
        value: of the pattern there; its sign was taken, and +1 for 0.
    """

    codeword: int
    tap: int
    value: float

    def __str__(self) -> str:
        return f"codeword {self.codeword} tap {self.tap} ({self.value:+.1e})"


@dataclass(frozen=True, eq=False)
class SnnLayer:
    """A binary convolution of a checkpoint.

    Attributes:
        name: of the convolution, as "layer1.0.binary_conv".
        weight: what the published code computes with.
        ambiguous: signs of the codebook that the checkpoint does not determine.
        duplicates: (codeword, first equal codeword); the former is never an index.
    """

    name: str
    weight: PackedWeight
    ambiguous: tuple[AmbiguousSign, ...]
    duplicates: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class SnnCheckpoint:
    """What a checkpoint holds; as a string, the table of its layers.

    Attributes:
        layers: its binary convolutions, in order.
        state: all other tensors by name, without the prefix of ``DataParallel``.
    """

    layers: tuple[SnnLayer, ...]
    state: dict[str, Tensor]

    @property
    def report(self) -> Report:
        """The layers, and in the notes what is ambiguous."""
        notes = [f"{layer.name}: ambiguous {_listed(layer.ambiguous)}." for layer in self.layers if layer.ambiguous]
        if notes:
            notes.append(
                f"An ambiguous sign is that of a pattern within {AMBIGUOUS_BELOW} of 0, where training may have kept "
                "the other one; it was read as the pattern's sign, 0 as +1."
            )
        return Report(tuple(map(_entry, self.layers)), tuple(notes))

    def __str__(self) -> str:
        return str(self.report)


def load_snn(path: str | os.PathLike[str]) -> SnnCheckpoint:
    """Reads the weights of a checkpoint, whatever network it is of; runs no code that it may hold.

    Latent kernels are assigned as the published code does it, by the norm of the difference in float32: that rounds,
    and so finds another codeword than exact arithmetic for few of the kernels whose values are near 0.

    Args:
        path: what ``torch.save`` wrote: ``{"state_dict": ...}`` or the state_dict itself, of any device.

    Returns:
        The binary convolutions, packed, and all other tensors, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such checkpoint, is corrupt, or holds anything but tensors and plain values.
    """
    state = _read(Path(path))
    layers = []
    for prefix in [key.removesuffix(_PATTERNS) for key in state if f".{key}".endswith(f".{_PATTERNS}")]:
        if f"{prefix}weight" not in state:
            raise ValueError(f"{path}: {prefix}weight is missing, which {prefix}{_PATTERNS} is of")
        try:
            layers.append(_layer(prefix.removesuffix("."), state.pop(f"{prefix}weight"), state.pop(prefix + _PATTERNS)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if not layers:
        raise ValueError(f"{path} must hold {_PATTERNS} of some layer, as step 2 of the published code saves them")
    return SnnCheckpoint(tuple(layers), state)


def snn_model(path: str | os.PathLike[str]) -> Converted[nn.Module]:
    """The network of a checkpoint of the published ReActNet-style ResNet, on sub-bit layers.

    Args:
        path: as in :func:`load_snn`. The number of blocks and of classes is read from it.

    Returns:
        A :class:`~subbit_infer.models.ReActNet` in evaluation mode, to be folded by
        ``subbit_infer.convert(network, images, fold=True)``; and the report of :class:`SnnCheckpoint`.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_snn`, or the tensors are not those of such a network.
    """
    checkpoint = load_snn(path)
    keys = {*checkpoint.state, *(layer.name for layer in checkpoint.layers)}
    depths = [len({key.split(".")[1] for key in keys if key.startswith(f"layer{n + 1}.")}) for n in range(_STAGES)]
    fc = checkpoint.state.get("fc.bias")
    with torch.device("meta"):  # so that sizes are compared before anything is allocated
        d1, d2, d3, d4 = (max(1, depth) for depth in depths)
        model = ReActNet((d1, d2, d3, d4), 1000 if fc is None else fc.numel())
    try:
        _put_layers(model, checkpoint.layers)
        _put_state(model, checkpoint.state)
    except ValueError as error:
        raise ValueError(f"{path} is not of the published ReActNet-style ResNet: {error}") from error
    return Converted(model.eval(), checkpoint.report)


def _read(path: Path) -> dict[str, Tensor]:
    """The state_dict in a file, on the CPU, float32 where it is floating point."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} must hold tensors and plain values alone, and be whole; nothing in it was run"
        ) from error
    except Exception as error:  # a broken file may raise anything
        raise ValueError(f"{path} is no checkpoint of torch.save, or a truncated one") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path} must hold a state_dict, tensors by name, got {type(state).__name__}")
    tensors = {key.removeprefix("module."): _checked(path, key, value) for key, value in state.items()}
    if len(tensors) != len(state):
        raise ValueError(f"{path} must not hold the same key with and without 'module.'")
    return tensors


def _checked(path: Path, key: str, value: object) -> Tensor:
    """A tensor of a file, float32 where it is floating point."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_complex():
        raise ValueError(f"{path}: {key} must be a dense tensor of real numbers, got {type(value).__name__}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{path}: {key} has {value.numel()} elements, more than the file holds")
    value = value.detach().contiguous()
    return value.to(torch.float32) if value.is_floating_point() else value


def _layer(name: str, latent: Tensor, patterns: Tensor) -> SnnLayer:
    """What the published code computes from a latent weight and patterns."""
    if latent.dim() != 4 or latent.shape[2:] != (3, 3) or latent.numel() == 0 or not latent.is_floating_point():
        raise ValueError(f"{name}.weight must be floats (C_out, C_in, 3, 3), got {latent.dtype} {tuple(latent.shape)}")
    sizes = [2**tau for tau in range(1, codebooks.MAX_TAU + 1)]
    if patterns.dim() != 2 or patterns.shape[1] != 9 or len(patterns) not in sizes or not patterns.is_floating_point():
        raise ValueError(
            f"{name}.{_PATTERNS} must be floats (2^tau, 9) with tau 1 to {codebooks.MAX_TAU}, "
            f"got {patterns.dtype} {tuple(patterns.shape)}"
        )
    for key, tensor in (("weight", latent), (_PATTERNS, patterns)):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}.{key} must be finite")
    signs = torch.where(patterns >= 0, 1.0, -1.0)
    scale = latent.abs().mean(3).mean(2).mean(1)  # rounded as the published code does it
    weight = PackedWeight.from_indices(_nearest(latent, signs), signs.reshape(-1, *codebooks.UNIT_3X3), scale)
    ambiguous = [
        AmbiguousSign(codeword, tap, float(patterns[codeword, tap]))
        for codeword, tap in (patterns.abs() < AMBIGUOUS_BELOW).nonzero().tolist()
    ]
    numbers = codebooks.numbers(weight.codebook()).tolist()
    firsts = [(codeword, numbers.index(number)) for codeword, number in enumerate(numbers)]
    return SnnLayer(name, weight, tuple(ambiguous), tuple(pair for pair in firsts if pair[0] != pair[1]))


def _nearest(latent: Tensor, signs: Tensor) -> Tensor:
    """int64 (C_out, C_in): the first nearest of signs (K, 9) to each kernel, as float32 norms tell."""
    rows = latent.reshape(-1, 9)
    chunks = rows.split(max(1, _CHUNK_BYTES // (4 * signs.numel())))
    nearest = [torch.linalg.vector_norm(chunk[:, None] - signs, dim=2).argmin(1) for chunk in chunks]
    return torch.cat(nearest).reshape(latent.shape[:2])


def _put_layers(model: ReActNet, layers: Iterable[SnnLayer]) -> None:
    """Replaces the body by the layers of a checkpoint; raises ValueError if they are not those of the body."""
    body = dict(body_convs(model))
    weights = {layer.name: layer.weight for layer in layers}
    _check_keys(f"{_PATTERNS} of", body, weights)
    for name, conv in body.items():
        weight = weights[name]
        if (weight.out_channels, weight.units) != (conv.out_channels, conv.in_channels):
            raise ValueError(f"{name}.weight must have shape {tuple(conv.weight.shape)}, got {_entry_shape(weight)}")
        layer = SubbitConv2d.from_packed(weight, stride=(conv.stride[0], conv.stride[1]), padding=1, activation_bits=1)
        model.set_submodule(name, layer)


def _put_state(model: ReActNet, state: dict[str, Tensor]) -> None:
    """Loads everything but the body; raises ValueError naming what does not fit."""
    own = model.state_dict()
    expected = {key: value for key, value in own.items() if value.is_meta}
    counters = {key: torch.tensor(0) for key in expected if key.endswith("num_batches_tracked")}  # old files lack them
    state = counters | state
    _check_keys("keys", expected, state)
    for key, value in expected.items():
        shape = (1, *value.shape) if ".move" in key else tuple(value.shape)  # a Shift there has a batch dimension
        if tuple(state[key].shape) != shape or state[key].dtype != value.dtype:
            raise ValueError(
                f"{key} must be {value.dtype} of shape {shape}, got {state[key].dtype} {tuple(state[key].shape)}"
            )
    held = {key: value for key, value in own.items() if not value.is_meta}
    loaded = {key: state[key].reshape(value.shape) for key, value in expected.items()}
    model.load_state_dict(held | loaded, assign=True)


def _check_keys(what: str, expected: Iterable[str], given: Iterable[str]) -> None:
    kinds = {"missing": sorted({*expected} - {*given}), "unexpected": sorted({*given} - {*expected})}
    wrong = [f"{kind} {what} {_listed(keys)}" for kind, keys in kinds.items() if keys]
    if wrong:
        raise ValueError("; ".join(wrong))


def _listed(items: Iterable[object]) -> str:
    """The first few, and how many more there are."""
    texts = [str(item) for item in items]
    more = len(texts) - _LISTED
    return ", ".join(texts[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _entry(layer: SnnLayer) -> LayerReport:
    counted = {"ambiguous sign": len(layer.ambiguous), "duplicate codeword": len(layer.duplicates)}
    why = ", ".join(f"{count} {what}{'s' * (count != 1)}" for what, count in counted.items() if count)
    return LayerReport.of_weight(layer.name, _entry_shape(layer.weight), layer.weight, 1, why=why)


def _entry_shape(weight: PackedWeight) -> tuple[int, int, int, int]:
    """Of the dense weight."""
    return weight.out_channels, weight.units, *weight.unit[1:]
