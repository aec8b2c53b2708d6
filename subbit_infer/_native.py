"""The one file that touches the compiled module: imports it, prepares weights for it, calls it."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from subbit_infer._cache import PerTensor
from subbit_infer.activations import pack_signs, unpack_signs
from subbit_infer.epilogue import Epilogue

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


_prepared = PerTensor[_Prepared]()  # by packed_indices
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
    entry = _prepared.get(packed)
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
        _prepared.put(packed, _Prepared(weight, weakref.ref(codebook), state, copy))
        return weight


def conv2d(
    weight: _C.Weight,
    x: Tensor,
    y: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
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


def conv2d_fused(
    weight: _C.Weight,
    x: Tensor,
    x_nonzero: Tensor | None,
    y: Tensor | None,
    out_plus: Tensor | None,
    out_nonzero: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    slope: Tensor | None,
    shift: Tensor | None,
    pack_shift: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation_bits: int,
    sign_zero: int,
    in_channels: int,
    sizes: tuple[int, int, int, int],
    level: str | None = None,
) -> None:
    """Writes a convolution with everything before and after it: float or packed in, float, packed or both out.

    With sums = the convolution of x (of its sign, where ``activation_bits`` is 1), in float32, each operation rounded
    by itself, in this order, what is None left out::

        v = sums * scale;  v = v + bias;  v = v + residual;  v = activation(v);  v = v + shift;  y = v
        s = v + pack_shift;  out_plus = s > 0, or s >= 0 where out_nonzero is None;  out_nonzero = s > 0 or s < 0

    The callers have checked every argument; all tensors are on the CPU. None is a null pointer, and all pointers are
    to the first element:

    Args:
        weight: the prepared weight.
        x: float32 (N, C_in, H, W) of any strides; or int64 (N, H, W, ceil(C_in / 64)), contiguous: the ``plus`` words
            of packed activations, whose bits from C_in on are 0.
        x_nonzero: where x is int64, the ``nonzero`` words, of x's shape, contiguous; None where no activation is 0 (a
            0 bit of x is then -1, at channels below C_in). None where x is float32. Padding contributes nothing
            in either case.
        y: float32 (N, C_out, H_out, W_out), contiguous or channels_last, to be written; None: not asked for.
        out_plus: int64 (N, H_out, W_out, ceil(C_out / 64)), contiguous, to be written wholly, bits from C_out on as 0;
            None: not asked for. y, out_plus or both are given.
        out_nonzero: the same of the values that are not 0 (and not NaN); None where out_plus is None, or where zeros
            count as +1 (NaN then packs as -1).
        scale: float32 (C_out,), contiguous; so are bias, slope, shift and pack_shift.
        bias: as scale.
        residual: float32 (N, C_out, H_out, W_out) of any strides, 0 among them (expanded); never overlaps y.
        activation: "none", "relu", "hardtanh" (between -1 and 1) or "prelu" (v where v > 0, else slope * v). NaN goes
            through all of them; the sign of a zero does not matter.
        slope: as scale; given if and only if ``activation`` is "prelu".
        shift: as scale.
        pack_shift: as scale; has no effect where out_plus is None.
        stride: rows, columns; so are padding and dilation.
        padding: zeros above and below, left and right.
        dilation: distance of the taps.
        groups: groups of channels.
        activation_bits: 32, or 1 to take the sign of x; 1 where x is int64.
        sign_zero: what the sign of an exact 0 of a float x is; no effect where x is int64.
        in_channels: C_in, which int64 x does not tell.
        sizes: (N, C_out, H_out, W_out), which out_plus alone does not tell.
        level: as in :func:`conv2d`.

    Raises:
        ValueError: the level is unknown or more than the machine has.
    """
    if x.dtype == torch.int64:
        x, sign_zero = unpack_signs(x, x_nonzero, in_channels), 0
    sums = torch.empty(sizes, dtype=torch.float32, memory_format=torch.channels_last) if y is None else y
    conv2d(weight, x, sums, scale, bias, stride, padding, dilation, groups, activation_bits, sign_zero, level)
    if residual is None and activation == "none" and shift is None and out_plus is None:
        return
    v = Epilogue(None, None, residual, activation, slope, shift).apply(sums)
    if y is not None and v is not y:
        y.copy_(v)
    if out_plus is not None:
        plus, nonzero = pack_signs(v, pack_shift, int(out_nonzero is None))
        out_plus.copy_(plus)
        if out_nonzero is not None and nonzero is not None:
            out_nonzero.copy_(nonzero)
