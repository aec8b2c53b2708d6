"""The one file that touches the compiled module: imports it, prepares weights for it, calls it."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# torch comes first: the compiled module takes its OpenMP functions from the runtime that torch has loaded.
try:
    from subbit_infer import _C
except ImportError as error:
    if "GOMP" not in str(error) and "omp_" not in str(error):
        raise ImportError(
            f"the compiled module subbit_infer._C is not in {Path(__file__).parent} or cannot be loaded: {error}. "
            "In a clone, run from another directory, after 'pip install .', or install with 'pip install -e .'"
        ) from error
    ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)  # a torch without OpenMP: bring one
    from subbit_infer import _C

UNITS = {(1, 3, 3): _C.Unit.k3x3, (8, 1, 1): _C.Unit.k8x1x1}
"""The units that kernels are compiled for (paper, Table 5)."""

kernels = _C.kernels
select = _C.select
machine_level = _C.machine_level
active_level = _C.active_level


@dataclass
class _Prepared:
    """A weight as the kernels read it, and what its tensors were when it was made."""

    weight: _C.Weight
    codebook: weakref.ref[Tensor]
    state: tuple[object, ...]
    copy: tuple[Tensor, Tensor] | None  # only of tensors that do not count their changes


_prepared = WeakTensorKeyDictionary()
_lock = threading.Lock()
# Held across fork(), so that a child never inherits it locked by a thread that it does not have.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _state(
    packed: Tensor, codebook: Tensor, units: int, codewords: int, unit: tuple[int, int, int]
) -> tuple[object, ...]:
    versions = _version(packed), _version(codebook)
    where = packed.data_ptr(), packed.shape, packed.stride(), codebook.data_ptr(), codebook.stride()
    return where, versions, units, codewords, unit


def _is_current(entry: _Prepared, packed: Tensor, codebook: Tensor, state: tuple[object, ...]) -> bool:
    if entry.codebook() is not codebook or entry.state != state:
        return False
    return entry.copy is None or (torch.equal(packed, entry.copy[0]) and torch.equal(codebook, entry.copy[1]))


def prepare(packed: Tensor, codebook: Tensor, units: int, codewords: int, unit: tuple[int, int, int]) -> _C.Weight:
    """The weight as the kernels read it: validated and decoded once, and again only if its tensors change.

    Changes that torch does not count (through ``.data``, or through memory shared with NumPy) are not seen.

    Raises:
        TypeError: a packed tensor is not uint8.
        ValueError: the packed tensors do not fit the sizes, or an index is out of range.
    """
    state = _state(packed, codebook, units, codewords, unit)
    entry: _Prepared | None = _prepared.get(packed)
    if entry is not None and _is_current(entry, packed, codebook, state):
        return entry.weight
    with _lock:
        entry = _prepared.get(packed)
        if entry is not None and _is_current(entry, packed, codebook, state):
            return entry.weight
        for name, tensor in (("packed_indices", packed), ("packed_codebook", codebook)):
            if tensor.dtype != torch.uint8:
                raise TypeError(f"{name} must be uint8, got {tensor.dtype}")
        indices_bytes, codebook_bytes = packed.contiguous(), codebook.contiguous()
        weight = _C.Weight(
            UNITS[unit],
            packed.shape[0],
            units,
            codewords,
            indices_bytes.data_ptr(),
            indices_bytes.numel(),
            codebook_bytes.data_ptr(),
            codebook_bytes.numel(),
        )
        uncounted = packed.is_inference() or codebook.is_inference()
        copy = (packed.clone(), codebook.clone()) if uncounted else None
        _prepared[packed] = _Prepared(weight, weakref.ref(codebook), state, copy)
        return weight


def conv2d(
    weight: _C.Weight,
    x: Tensor,
    y: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    activation_bits: int,
    sign_zero: int,
    level: str | None = None,
) -> None:
    """Writes the convolution of x (N, C_in, H, W) to y (N, C_out, H_out, W_out), both float32 on the CPU.

    The level is the one asked for by ``SUBBIT_ISA``, else the machine's, unless ``level`` names one. Runs on as
    many threads as torch, without the GIL.

    Raises:
        ValueError: sizes do not fit each other, or the level is unknown or more than the machine has.
    """
    _C.conv2d(
        weight,
        x.data_ptr(),
        x.shape,
        x.stride(),
        y.data_ptr(),
        y.shape,
        y.stride(),
        0 if scale is None else scale.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        stride,
        padding,
        dilation,
        groups,
        activation_bits == 1,
        bool(sign_zero),
        torch.get_num_threads(),
        level,
    )
