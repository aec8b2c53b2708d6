"""Bits: numbers from bits and back, and the bit streams that weights are stored as."""

from __future__ import annotations

import torch
from torch import Tensor


def numbers_of_bits(bits: Tensor) -> Tensor:
    """The numbers int64 (...,) whose bits, least significant first, are (..., width) of 0 and 1, or booleans."""
    numbers: Tensor = (bits.to(torch.int64) << torch.arange(bits.shape[-1], device=bits.device)).sum(-1)
    return numbers


def bits_of_numbers(numbers: Tensor, width: int) -> Tensor:
    """The inverse of :func:`numbers_of_bits`: integers (...,) to (..., width) of 0 and 1."""
    return (numbers.unsqueeze(-1) >> torch.arange(width, device=numbers.device)) & 1


def byte_count(bits: int) -> int:
    """Bytes that hold so many bits."""
    return -(-bits // 8)


def pack_bits(values: Tensor, width: int) -> Tensor:
    """Packs integers of ``width`` bits into a little-endian bit stream a row.

    Args:
        values: (rows, n) integers in [0, 2^width).
        width: bits of one value.

    Returns:
        (rows, ceil(n * width / 8)) uint8, laid out as :class:`PackedWeight` describes; spare bits are 0.
    """
    rows, n = values.shape
    bits = bits_of_numbers(values, width)
    row_bytes = byte_count(n * width)
    stream = torch.zeros(rows, row_bytes * 8, dtype=torch.uint8, device=values.device)
    stream[:, : n * width] = bits.reshape(rows, n * width).to(torch.uint8)
    place = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=values.device)
    return (stream.view(rows, row_bytes, 8) * place).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, n: int, width: int) -> Tensor:
    """The inverse of :func:`pack_bits`: (rows, bytes) uint8 to (rows, n) int64."""
    rows = packed.shape[0]
    bits = (packed.unsqueeze(-1) >> torch.arange(8, device=packed.device, dtype=torch.uint8)) & 1
    return numbers_of_bits(bits.reshape(rows, packed.shape[1] * 8)[:, : n * width].reshape(rows, n, width))
