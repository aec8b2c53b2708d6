"""The one file that touches the compiled module: imports it, prepares weights for it, calls it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from subbit_infer.backends.cache import WeightCache, version_of
from subbit_infer.core.activations import word_count
from subbit_infer.core.epilogue import ACTIVATIONS
from subbit_infer.core.reference import dense_conv2d

# torch comes first: the compiled module takes its OpenMP functions from the runtime that torch has loaded.
try:
    from subbit_infer import _C
except ImportError as error:
    if "GOMP" not in str(error) and "omp_" not in str(error):
        raise ImportError(
            f"the compiled module subbit_infer._C is not in {Path(__file__).parent.parent} or cannot be loaded: "
            f"{error}. "
            "In a clone, run from another directory, after 'pip install .', or install with 'pip install -e .'"
        ) from error
    ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)  # a torch without OpenMP: bring one
    from subbit_infer import _C

UNITS = {(1, 3, 3): _C.Unit.k3x3, (8, 1, 1): _C.Unit.k8x1x1}
"""The units that kernels are compiled for (paper, Table 5)."""

Conv = _C.Conv
kernels = _C.kernels
candidates = _C.candidates
cuda_candidates = _C.cuda_candidates
wanted_plan = _C.wanted_plan
machine_level = _C.machine_level
active_level = _C.active_level


class Prepared:
    """A weight as the kernels read it, and the convolutions with it, by their sizes and options."""

    def __init__(self, weight: _C.Weight, channels: int) -> None:
        self.weight = weight
        self.channels = channels  # of a group
        self.convs: dict[tuple[object, ...], _C.Conv] = {}
        self.decoded: Tensor | None = None  # where a convolution runs densely
        self._dense: _Dense | None = None
        self.repeats: dict[object, Any] = {}  # calls made before (ops/repeat.py)

    def _dense_weight(self, scale: Tensor | None) -> Tensor:
        """The decoded weight (there must be one) times scale; kept, and made again when the scale changes."""
        assert self.decoded is not None
        if scale is None:
            return self.decoded
        kept = self._dense
        if kept is not None and kept.scale is scale and kept.is_current():
            return kept.weight
        with torch.no_grad():
            weight = self.decoded * scale[:, None, None, None]
        self._dense = _Dense(scale, weight)
        return weight

    def convolve_densely(self, x: Tensor, scale: Tensor | None, bias: Tensor | None, *geometry: Any) -> Tensor:
        """The convolution with the dense weight, in float32 whatever surrounds the call."""
        weight = self._dense_weight(scale)
        if not torch.is_autocast_enabled("cpu"):
            return dense_conv2d(x, weight, bias, *geometry)
        with torch.autocast("cpu", enabled=False):
            return dense_conv2d(x, weight, bias, *geometry)


class _Dense:
    """A decoded weight times a scale, and what the scale was."""

    def __init__(self, scale: Tensor, weight: Tensor) -> None:
        self.scale = scale
        self.weight = weight
        self._version = version_of(scale)
        self._copy = scale.clone() if scale.is_inference() else None  # changes are not counted

    def is_current(self) -> bool:
        """Whether the scale is what it was."""
        if self._copy is not None:
            return _is_same(self.scale, self._copy)
        return self._version == version_of(self.scale)


def _is_same(tensor: Tensor, copy: Tensor) -> bool:
    """``torch.equal`` of tensors of the same shape and dtype, twenty times as fast where they are contiguous."""
    if not (tensor.is_contiguous() and copy.is_contiguous()):
        return torch.equal(tensor, copy)
    return _C.same_bytes(tensor.data_ptr(), copy.data_ptr(), tensor.nbytes)


_weights = WeightCache[Prepared](_is_same)
find_prepared = _weights.find


def check_weight(packed: Tensor, codebook: Tensor, units: int, codewords: int, unit: tuple[int, int, int]) -> _C.Weight:
    """The weight decoded from packed tensors on the CPU, every index checked; raises as :func:`prepare`."""
    for name, tensor in (("packed_indices", packed), ("packed_codebook", codebook)):
        if tensor.dtype != torch.uint8:
            raise TypeError(f"{name} must be uint8, got {tensor.dtype}")
    indices_bytes, codebook_bytes = packed.contiguous(), codebook.contiguous()
    return _C.Weight(
        UNITS[unit],
        packed.shape[0],
        units,
        codewords,
        indices_bytes.data_ptr(),
        indices_bytes.numel(),
        codebook_bytes.data_ptr(),
        codebook_bytes.numel(),
    )


def prepare(packed: Tensor, codebook: Tensor, units: int, codewords: int, unit: tuple[int, int, int]) -> Prepared:
    """The weight as the kernels read it: validated and decoded once, and again only if its tensors change.

    Changes that torch does not count (through ``.data``, or through memory shared with NumPy) are not seen.

    Raises:
        TypeError: a packed tensor is not uint8.
        ValueError: the packed tensors do not fit the sizes, or an index is out of range.
    """

    def make() -> Prepared:
        return Prepared(check_weight(packed, codebook, units, codewords, unit), units * unit[0])

    return _weights.prepare(packed, codebook, units, codewords, unit, make)


def pack(x: Tensor, shift: Tensor | None, sign_zero: int, level: str | None = None) -> tuple[Tensor, Tensor | None]:
    """The signs of x + shift as words, ``plus`` and ``nonzero``; see :func:`subbit_infer.pack`.

    Args:
        x: float32 (N, C, H, W) of any strides, on the CPU.
        shift: float32 (C,), contiguous, or None.
        sign_zero: 1 for zeros that count as +1, and no ``nonzero``.
        level: as in :func:`conv2d`.
    """
    batch, channels, height, width = x.shape
    plus = torch.empty(batch, height, width, word_count(channels), dtype=torch.int64, device="cpu")
    nonzero = None if sign_zero else torch.empty_like(plus)
    if plus.numel():
        _C.pack(
            x.data_ptr(), x.shape, x.stride(), _pointer(shift), bool(sign_zero), plus.data_ptr(), _pointer(nonzero),
            torch.get_num_threads(), level,
        )  # fmt: skip
    return plus, nonzero


_MOST_CONVS = 32  # sizes and options that one weight is kept planned for


def rows_follow(x: Tensor) -> bool:
    """Whether the rows of x (N, C, H, W) follow each other in memory, as kernels want those of a residual."""
    return x.shape[2] <= 1 or x.stride(2) == x.shape[3] * x.stride(3)


def is_vector(v: Tensor) -> bool:
    """Whether kernels can read a (C_out,) tensor."""
    return v.dtype == torch.float32 and v.is_contiguous()


def reads(x: Tensor, x_nonzero: Tensor | None, residual: Tensor | None) -> bool:
    """Whether kernels can read these as they are."""
    in_words = x.dtype == torch.int64 and x.is_contiguous() and (x_nonzero is None or x_nonzero.is_contiguous())
    can_add = residual is None or (residual.dtype == torch.float32 and rows_follow(residual))
    return (x.dtype == torch.float32 or in_words) and can_add


def planned(
    weight: Prepared,
    x: Tensor,
    y: Tensor | None,
    residual: Tensor | None,
    packs: bool,
    sizes: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    activation_bits: int,
    sign_zero: int,
    activation: str,
    level: str | None = None,
    plan: str | None = None,
) -> Conv:
    """The convolution for these sizes and options, planned at their first call; see :func:`conv2d`."""
    options = stride, padding, dilation, groups, activation_bits, sign_zero, activation, level, plan
    packed = x.dtype == torch.int64
    x_strides = None if packed else x.stride()
    y_strides = None if y is None else y.stride()
    residual_strides = None if residual is None else residual.stride()
    threads = torch.get_num_threads()
    key = x.shape, x_strides, sizes, y_strides, residual_strides, packs, threads, options
    conv = weight.convs.get(key)
    if conv is not None:
        return conv
    x_shape = (x.shape[0], weight.channels * groups, *x.shape[1:3]) if packed else x.shape
    conv = _C.Conv(
        weight.weight, x_shape, x_strides, sizes, y_strides, residual_strides, packs, stride, padding, dilation, groups,
        activation_bits == 1, bool(sign_zero) and not packed, ACTIVATIONS.index(activation), threads, level, plan,
    )  # fmt: skip
    if len(weight.convs) >= _MOST_CONVS:
        weight.convs.clear()
    weight.convs[key] = conv
    return conv


def planned_kernel(weight: Prepared, sizes: tuple[int, int, int, int]) -> str | None:
    """The kernel that ran for an output of these sizes (N, C_out, H_out, W_out), the last planned; None: dense."""
    planned = [conv for key, conv in weight.convs.items() if key[2] == sizes]
    repeated = [call.conv for call in weight.repeats.values() if call.sizes == sizes]  # may outlive the others
    kernel: str | None = (planned or repeated)[-1].kernel
    return kernel


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def conv2d(
    weight: Prepared,
    x: Tensor,
    y: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    activation_bits: int,
    sign_zero: int,
    level: str | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
    slope: Tensor | None = None,
    shift: Tensor | None = None,
    x_nonzero: Tensor | None = None,
    plus: Tensor | None = None,
    nonzero: Tensor | None = None,
    pack_shift: Tensor | None = None,
    sizes: tuple[int, int, int, int] | None = None,
    plan: str | None = None,
) -> bool:
    """Writes a convolution with everything before and after it: float or packed in, float, packed or both out.

    With sums = the convolution of x (of its sign, where ``activation_bits`` is 1), in float32, each operation rounded
    by itself, in this order, what is None left out::

        v = sums * scale;  v = v + bias;  v = v + residual;  v = activation(v);  v = v + shift;  y = v
        s = v + pack_shift;  plus = s > 0, or s >= 0 where nonzero is None;  nonzero = s > 0 or s < 0

    Runs on as many threads as torch, without the GIL. The callers have checked every argument; all tensors are on the
    CPU.

    Args:
        weight: the prepared weight.
        x: float32 (N, C_in, H, W) of any strides; or int64 (N, H, W, ceil(C_in / 64)), contiguous: the ``plus`` words
            of packed activations.
        y: float32 (N, C_out, H_out, W_out), contiguous or channels_last; None: not asked for.
        scale: float32 (C_out,), contiguous; so are bias, slope, shift and pack_shift.
        bias: as scale.
        stride: rows, columns; so are padding and dilation.
        padding: zeros above and below, left and right. They contribute nothing.
        dilation: distance of the taps.
        groups: groups of channels.
        activation_bits: 32, or 1 to take the sign of x; 1 where x is packed.
        sign_zero: what the sign of an exact 0 of a float x is; no effect where x is packed.
        level: None for the one asked for by ``SUBBIT_ISA``, else the machine's. Read when a weight first meets a size.
        residual: float32 (N, C_out, H_out, W_out), whose rows follow each other; never overlaps y.
        activation: one of ``epilogue.ACTIVATIONS``.
        slope: as scale; given if and only if ``activation`` is "prelu".
        shift: as scale.
        x_nonzero: where x is packed, its ``nonzero`` words; None where no activation is 0.
        plus: int64 (N, H_out, W_out, ceil(C_out / 64)), contiguous; None: not asked for. y, plus or both are given.
        nonzero: the same; None where zeros count as +1 (NaN then packs as -1), and without plus.
        pack_shift: as scale.
        sizes: (N, C_out, H_out, W_out); None for y's.
        plan: "sharing", "rows", "patches", "bits" or "dense"; None for the one asked for by ``SUBBIT_PLAN``, else the
            quickest. Read when a weight first meets a size.

    Returns:
        Whether it was done: not where the plan is to convolve densely, which is the caller's to do.

    Raises:
        ValueError: sizes do not fit each other, or the level is unknown or more than the machine has.
    """
    conv = planned(
        weight, x, y, residual, plus is not None, sizes or cast("Tensor", y).shape,
        stride, padding, dilation, groups, activation_bits, sign_zero, activation, level, plan,
    )  # fmt: skip
    if conv.is_dense:
        return False
    conv(
        x.data_ptr(), _pointer(x_nonzero), _pointer(y), _pointer(plus), _pointer(nonzero), _pointer(scale),
        _pointer(bias), _pointer(residual), _pointer(slope), _pointer(shift), _pointer(pack_shift),
    )  # fmt: skip
    return True
