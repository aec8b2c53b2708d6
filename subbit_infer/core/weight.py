"""The packed weight: tau-bit indices, a codebook at one bit per tap, scale and bias; and its file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor

from subbit_infer.core import codebook as codebook_module
from subbit_infer.core.atomic import replacing
from subbit_infer.core.bits import byte_count, numbers_of_bits, pack_bits, unpack_bits
from subbit_infer.core.safetensors_io import check_format, json_object, reading

FORMAT = "subbit_infer"
FORMAT_VERSION = 1


_INDEX_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_indices(indices: Tensor, codewords: int) -> None:
    """Checks that indices are integers of two dimensions in [0, codewords).

    Raises:
        TypeError: ``indices`` is not a tensor of integers.
        ValueError: it has another rank, is empty, or holds an index out of range.
    """
    if not isinstance(indices, Tensor):
        raise TypeError(f"indices must be a tensor or a PackedWeight, got {type(indices).__name__}")
    if indices.dtype not in _INDEX_DTYPES or indices.layout != torch.strided:
        raise TypeError(f"indices must be integers (uint8 or int8 to int64), got {indices.dtype}, {indices.layout}")
    if indices.dim() != 2 or 0 in indices.shape:
        raise ValueError(f"indices must be (C_out, C_in / g) and not empty, got shape {tuple(indices.shape)}")
    low, high = (int(v) for v in indices.aminmax())
    if low < 0 or high >= codewords:
        bad = low if low < 0 else high
        at = tuple((indices == bad).nonzero()[0].tolist())
        raise ValueError(
            f"indices must be in [0, {codewords}), the number of codewords; indices[{at[0]}, {at[1]}] is {bad}"
        )


def pack_indices(indices: Tensor, codewords: int) -> Tensor:
    """Packs indices at tau = ceil(log2(codewords)) bits.

    Args:
        indices: (C_out, U) integers in [0, codewords).
        codewords: size of the codebook.

    Returns:
        (C_out, ceil(U * tau / 8)) uint8.

    Raises:
        TypeError, ValueError: as :func:`check_indices`.
    """
    check_indices(indices, codewords)
    return pack_bits(indices.to(torch.int64), codebook_module.tau_of(codewords))


def pack_codebook(codebook: Tensor) -> Tensor:
    """Packs a codebook (K, g, kh, kw) of +-1 at one bit per tap: (ceil(K * taps / 8),) uint8, 1 for +1."""
    bits = (codebook_module.check_codebook(codebook) > 0).to(torch.int64)
    return pack_bits(bits.reshape(1, -1), 1)[0]


def unpack_codebook(packed: Tensor, codewords: int, unit: tuple[int, int, int]) -> Tensor:
    """The inverse of :func:`pack_codebook`: float32 (codewords, g, kh, kw) of +-1."""
    g, kh, kw = unit
    bits = unpack_bits(packed.unsqueeze(0), codewords * g * kh * kw, 1)
    return (bits.to(torch.float32) * 2 - 1).reshape(codewords, g, kh, kw)


def unpack_indices(packed: Tensor, units: int, codewords: int) -> Tensor:
    """The inverse of :func:`pack_indices`: int64 (C_out, units), every index checked.

    Raises:
        ValueError: an index is out of range, or the bytes do not fit the sizes.
    """
    indices = unpack_bits(packed, units, codebook_module.tau_of(codewords))
    check_indices(indices, codewords)
    return indices


def decode_packed(
    packed_indices: Tensor, packed_codebook: Tensor, units: int, codewords: int, unit: Sequence[int]
) -> Tensor:
    """The dense weight of packed tensors without scale, float32 (C_out, units * g, kh, kw) of +-1."""
    g, kh, kw = unit
    indices = unpack_indices(packed_indices, units, codewords)
    return codebook_module.decode(indices, unpack_codebook(packed_codebook, codewords, (g, kh, kw)))


def check_channel_vector(name: str, vector: Tensor | None, out_channels: int) -> None:
    """Checks that a scale or bias is None or (C_out,) floats.

    Raises:
        TypeError: it is not a tensor of floats.
        ValueError: its shape is not (out_channels,).
    """
    if vector is None:
        return
    if not isinstance(vector, Tensor):
        raise TypeError(f"{name} must be a tensor or None, got {type(vector).__name__}")
    if not vector.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {vector.dtype}")
    if tuple(vector.shape) != (out_channels,):
        raise ValueError(f"{name} must have shape (C_out,) = ({out_channels},), got {tuple(vector.shape)}")


def _float_vector(name: str, vector: Tensor | None, out_channels: int) -> Tensor | None:
    check_channel_vector(name, vector, out_channels)
    return None if vector is None else vector.detach().to(torch.float32).contiguous()


def _unit_of(weight: Tensor) -> tuple[int, int, int]:
    """The unit the paper cuts a weight (C_out, C_in, kh, kw) into: 8 channels of a 1x1 weight, else one kernel."""
    kh, kw = weight.shape[-2:]
    return (8, 1, 1) if (kh, kw) == (1, 1) and weight.shape[1] % 8 == 0 else (1, kh, kw)


def _distinct_units(units: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ones (K, g, kh, kw) of units (C_out, U, g, kh, kw) of +-1, and each unit's index (C_out, U)."""
    unit = units.shape[2:]
    rows = units.reshape(-1, unit.numel())
    if unit.numel() <= 62:  # as numbers, which are much faster to compare than rows
        numbers = numbers_of_bits(rows > 0)
        distinct, indices = numbers.unique(return_inverse=True)
        first = torch.empty_like(distinct).scatter_(0, indices, torch.arange(len(rows), device=units.device))
        codewords = rows[first]
    else:
        codewords, indices = rows.unique(dim=0, return_inverse=True)
    return codewords.reshape(-1, *unit), indices.reshape(units.shape[:2])


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A sub-bit weight as it is stored: the weight of output channel o is ``scale[o] * codebook[indices[o, :]]``.

    Make one with :meth:`from_indices`, :meth:`from_dense` or :meth:`load`, which validate everything once.

    Both packed tensors are little-endian bit streams: stream bit b is bit b % 8 of byte b // 8, bit 0 being the
    least significant. Index i of an output channel takes stream bits [i * tau, (i + 1) * tau), least significant
    bit first, and a channel begins a new byte. With tau = 5::

        byte          0                 1                 2
        bit    7 6 5 4 3 2 1 0   7 6 5 4 3 2 1 0   7 6 5 4 3 2 1 0
               1 1 1 0 0 0 0 0   3 2 2 2 2 2 1 1   4 4 4 4 3 3 3 3      which index the bit belongs to

    In the codebook tap t of codeword k is stream bit k * taps + t, taps in C order over (g, kh, kw); 1 is +1.

    Attributes:
        packed_indices: (C_out, ceil(units * tau / 8)) uint8.
        packed_codebook: (ceil(codewords * taps / 8),) uint8.
        units: units of one output channel, C_in / (groups * g).
        codewords: size of the codebook, 1 to 256; tau = ceil(log2(codewords)), at least 1.
        unit: (g, kh, kw), what one index names (paper, Table 5): (1, 3, 3), (8, 1, 1) or any other.
        scale: (C_out,) float32, or None for 1.
        bias: (C_out,) float32, or None for 0.
    """

    packed_indices: Tensor
    packed_codebook: Tensor
    units: int
    codewords: int
    unit: tuple[int, int, int]
    scale: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def from_indices(
        cls, indices: Tensor, codebook: Tensor, scale: Tensor | None = None, bias: Tensor | None = None
    ) -> PackedWeight:
        """Packs indices and a codebook.

        Args:
            indices: (C_out, C_in / g) integers in [0, K).
            codebook: (K, g, kh, kw) of +-1; (K, kh, kw) is short for g = 1 and (K, g) for (K, g, 1, 1).
            scale: (C_out,) floats, or None.
            bias: (C_out,) floats, or None.

        Raises:
            TypeError, ValueError: naming the argument, the rule and the value given.
        """
        codebook = codebook_module.check_codebook(codebook)
        packed = pack_indices(indices, codebook.shape[0])
        g, kh, kw = codebook.shape[1:]
        return cls(
            packed,
            pack_codebook(codebook),
            indices.shape[1],
            codebook.shape[0],
            (g, kh, kw),
            _float_vector("scale", scale, indices.shape[0]),
            _float_vector("bias", bias, indices.shape[0]),
        )

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        tau: int | None = None,
        bias: Tensor | None = None,
        unit: tuple[int, int, int] | None = None,
    ) -> PackedWeight:
        """Packs a weight that already is sub-bit, exactly.

        Args:
            weight: (C_out, C_in / groups, kh, kw) or (C_out, C_in): in each output channel all values +-alpha.
            tau: bits an index may take; None takes as many as the weight needs.
            bias: (C_out,) floats, or None.
            unit: (g, kh, kw); None for (8, 1, 1) of a 1x1 weight whose channels divide by 8, else (1, kh, kw).

        Raises:
            TypeError: ``weight`` is not a tensor of floats.
            ValueError: it is not +-alpha in some channel, or has more than 2^tau distinct units.
        """
        if not isinstance(weight, Tensor):
            raise TypeError(f"weight must be a tensor, got {type(weight).__name__}")
        if not weight.is_floating_point():
            raise TypeError(f"weight must be floating point, got {weight.dtype}")
        if weight.dim() == 2:
            weight = weight[:, :, None, None]
        if weight.dim() != 4 or 0 in weight.shape:
            raise ValueError(f"weight must be (C_out, C_in, kh, kw) and not empty, got shape {tuple(weight.shape)}")
        if tau is not None and (type(tau) is not int or not 1 <= tau <= codebook_module.MAX_TAU):
            raise ValueError(f"tau must be an int from 1 to {codebook_module.MAX_TAU}, or None, got {tau!r}")
        weight = weight.detach().to(torch.float32)
        unit = _unit_of(weight) if unit is None else unit
        scale = weight[:, 0, 0, 0].abs()
        wrong = weight.abs() != scale[:, None, None, None]
        wrong |= ~(scale > 0)[:, None, None, None] | ~weight.isfinite()
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            raise ValueError(
                "weight must be +-alpha with one finite alpha > 0 an output channel; "
                f"weight{list(at)} is {weight[at].item()} in a channel with alpha {scale[at[0]].item()}"
            )
        units = codebook_module.units_of(weight.sign(), unit)
        codewords, indices = _distinct_units(units)
        most = 2**codebook_module.MAX_TAU if tau is None else 2**tau
        if len(codewords) > most:
            raise ValueError(
                f"weight must have at most 2^tau = {most} distinct units, got {len(codewords)}; "
                "codebook.assign finds the nearest codewords of a smaller codebook"
            )
        return cls.from_indices(
            indices,
            codewords,
            None if bool((scale == 1).all()) else scale,
            bias,
        )

    @property
    def tau(self) -> int:
        """Bits of an index."""
        return codebook_module.tau_of(self.codewords)

    @property
    def out_channels(self) -> int:
        """Output channels."""
        return self.packed_indices.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored: indices, codebook, scale and bias."""
        tensors = (self.packed_indices, self.packed_codebook, self.scale, self.bias)
        return sum(t.nbytes for t in tensors if t is not None)

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights."""
        g, kh, kw = self.unit
        return self.nbytes * 8 / (self.out_channels * self.units * g * kh * kw)

    def indices(self) -> Tensor:
        """(C_out, units) int64."""
        return unpack_bits(self.packed_indices, self.units, self.tau)

    def codebook(self) -> Tensor:
        """(codewords, g, kh, kw) float32 of +-1."""
        return unpack_codebook(self.packed_codebook, self.codewords, self.unit)

    def decode(self) -> Tensor:
        """The dense weight, scale included: (C_out, units * g, kh, kw) float32."""
        dense = codebook_module.decode(self.indices(), self.codebook())
        return dense if self.scale is None else dense * self.scale[:, None, None, None]

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same weight on another device."""
        return PackedWeight(
            self.packed_indices.to(device),
            self.packed_codebook.to(device),
            self.units,
            self.codewords,
            self.unit,
            None if self.scale is None else self.scale.to(device),
            None if self.bias is None else self.bias.to(device),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes this weight alone to a safetensors file; see :func:`save_weights`."""
        save_weights({"weight": self}, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PackedWeight:
        """Reads a file written by :meth:`save`; see :func:`load_weights`.

        Raises:
            ValueError: the file is not such a file, or holds several weights.
        """
        weights = load_weights(path)
        if len(weights) != 1:
            raise ValueError(f"{path} must hold one weight, it holds {len(weights)}; use load_weights")
        return next(iter(weights.values()))

    def __repr__(self) -> str:
        g, kh, kw = self.unit
        return (
            f"PackedWeight(out_channels={self.out_channels}, units={self.units}, unit={g}x{kh}x{kw}, "
            f"codewords={self.codewords}, tau={self.tau}, scale={self.scale is not None}, "
            f"bias={self.bias is not None}, nbytes={self.nbytes})"
        )


def save_weights(weights: Mapping[str, PackedWeight], path: str | os.PathLike[str]) -> None:
    """Writes weights to one safetensors file, replacing it at once or, on failure, leaving it as it was.

    Weight ``name`` is stored as tensors ``name.indices``, ``name.codebook`` and, if present, ``name.scale`` and
    ``name.bias``. The metadata holds ``format``, ``version`` and, as JSON under ``weights``, each weight's
    ``[units, codewords, g, kh, kw]``.

    Raises:
        OSError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, weight in weights.items():
        shapes[name] = [weight.units, weight.codewords, *weight.unit]
        parts = {
            "indices": weight.packed_indices,
            "codebook": weight.packed_codebook,
            "scale": weight.scale,
            "bias": weight.bias,
        }
        tensors |= {
            f"{name}.{part}": t.cpu().clone(memory_format=torch.contiguous_format)
            for part, t in parts.items()
            if t is not None
        }
    metadata = {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "weights": json.dumps(shapes, separators=(",", ":")),
    }
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata))


def load_weights(path: str | os.PathLike[str]) -> dict[str, PackedWeight]:
    """Reads a file written by :func:`save_weights` and validates it wholly.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupt, of another format or a newer version, or what it holds is not a weight.
    """
    with reading(path) as file:
        metadata = file.metadata() or {}
        check_format(path, metadata, FORMAT, FORMAT_VERSION)
        shapes = json_object(path, metadata, "weights")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    weights = {name: _weight_of(path, name, shape, tensors) for name, shape in shapes.items()}
    if tensors:
        raise ValueError(f"{path} must hold only tensors of its weights, also holds {sorted(tensors)}")
    return weights


def _weight_of(path: str | os.PathLike[str], name: str, shape: object, tensors: dict[str, Tensor]) -> PackedWeight:
    """Takes one weight's tensors out of a file's and validates them."""
    where = f"{path}: weight {name!r}"
    if not isinstance(shape, list) or len(shape) != 5 or not all(type(v) is int and v >= 1 for v in shape):
        raise ValueError(f"{where} must have five positive sizes [units, codewords, g, kh, kw], got {shape}")
    units, codewords, g, kh, kw = shape
    if codewords > codebook_module.MAX_CODEWORDS:
        raise ValueError(f"{where} must have at most {codebook_module.MAX_CODEWORDS} codewords, got {codewords}")
    try:
        packed, codebook = (tensors.pop(f"{name}.{part}") for part in ("indices", "codebook"))
    except KeyError as error:
        raise ValueError(f"{where} lacks the tensor {error}") from error
    row_bytes = byte_count(units * codebook_module.tau_of(codewords))
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[0] < 1 or packed.shape[1] != row_bytes:
        raise ValueError(
            f"{where}: indices must be uint8 of shape (C_out, {row_bytes}), got {packed.dtype} {tuple(packed.shape)}"
        )
    codebook_bytes = byte_count(codewords * g * kh * kw)
    if codebook.dtype != torch.uint8 or tuple(codebook.shape) != (codebook_bytes,):
        raise ValueError(
            f"{where}: codebook must be uint8 of shape ({codebook_bytes},), "
            f"got {codebook.dtype} {tuple(codebook.shape)}"
        )
    scale, bias = (tensors.pop(f"{name}.{part}", None) for part in ("scale", "bias"))
    for part, vector in (("scale", scale), ("bias", bias)):
        if vector is not None and (vector.dtype != torch.float32 or vector.shape != packed.shape[:1]):
            raise ValueError(
                f"{where}: {part} must be float32 of shape ({packed.shape[0]},), "
                f"got {vector.dtype} {tuple(vector.shape)}"
            )
    weight = PackedWeight(packed, codebook, units, codewords, (g, kh, kw), scale, bias)
    try:
        check_indices(weight.indices(), codewords)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return weight
