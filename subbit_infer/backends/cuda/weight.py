"""Weights as the CUDA kernels read them: validated and brought to a device once, kept as long as their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from subbit_infer.backends import cpu
from subbit_infer.backends.cache import WeightCache
from subbit_infer.backends.cuda import device as devices
from subbit_infer.backends.cuda.planner import Planned
from subbit_infer.core.bits import numbers_of_bits
from subbit_infer.core.weight import unpack_codebook

_WORD_BYTES = 4  # rows of indices are whole words on the device


class Prepared:
    """A weight on a device as the kernels read it, and the convolutions with it, by their sizes and options."""

    def __init__(self, words: Tensor, codewords: Tensor, count: int, unit: tuple[int, int, int]) -> None:
        self.words = words  # int32 (C_out, words): indices of tau bits
        self.codewords = codewords  # int16 (K,), bit t for tap t
        self.count = count  # K
        self.unit = unit
        self.convs: dict[tuple[object, ...], Planned] = {}
        self.arranged: dict[object, Tensor] = {}  # for routes that do not read the indices
        self.repeats: dict[object, Any] = {}  # calls made before (ops/repeat.py)
        self._dense: dict[torch.dtype, Tensor] = {}

    def dense(self, dtype: torch.dtype, decode: Callable[[], Tensor]) -> Tensor:
        """The decoded weight in a dtype, made by ``decode`` at the first call, without scale."""
        found = self._dense.get(dtype)
        if found is not None:
            return found
        devices.refuse_capture(self.words.device)
        with torch.inference_mode(False), torch.no_grad():
            weight = decode().to(dtype)
        devices.settle(self.words.device)
        self._dense[dtype] = weight
        return weight


def _is_same(tensor: Tensor, copy: Tensor) -> bool:
    """Whether a tensor is what it was; not looked at while a CUDA graph is captured: that waits for the device."""
    return devices.is_capturing(tensor.device) or torch.equal(tensor, copy)


_weights = WeightCache[Prepared](_is_same)
find_prepared = _weights.find


def prepare(packed: Tensor, codebook: Tensor, units: int, codewords: int, unit: tuple[int, int, int]) -> Prepared:
    """The weight as the kernels read it: validated and brought into shape once, and again only if its tensors change.

    The first call waits for the device. So does every call with tensors made in inference mode, outside captures:
    torch does not count their changes, so they are compared. Changes through ``.data`` are not seen.

    Raises:
        TypeError: a packed tensor is not uint8.
        ValueError: the packed tensors do not fit the sizes, or an index is out of range.
        RuntimeError: the first call is inside the capture of a CUDA graph.
    """

    def make() -> Prepared:
        devices.refuse_capture(packed.device)
        with torch.inference_mode(False), torch.no_grad():
            indices, bits = packed.cpu().contiguous(), codebook.cpu().contiguous()
            cpu.check_weight(indices, bits, units, codewords, unit)
            words = torch.nn.functional.pad(indices, (0, -indices.shape[1] % _WORD_BYTES)).view(torch.int32)
            numbers = numbers_of_bits((unpack_codebook(bits, codewords, unit) > 0).flatten(1)).to(torch.int16)
            return Prepared(words.to(packed.device), numbers.to(packed.device), codewords, unit)

    return _weights.prepare(packed, codebook, units, codewords, unit, make)
