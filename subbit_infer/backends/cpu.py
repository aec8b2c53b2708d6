"""Convolutions on the CPU: weights as the kernels read them, plans, and what runs them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from subbit_infer.backends import native
from subbit_infer.backends.cache import WeightCache
from subbit_infer.backends.dense import Dense
from subbit_infer.backends.executable import Executable, Kernel, check_memory
from subbit_infer.backends.executable import readable as _readable
from subbit_infer.core.activations import word_count
from subbit_infer.core.conv_args import ConvArgs, OutputLayout
from subbit_infer.core.epilogue import ACTIVATIONS

_MOST_CONVS = 32  # sizes and options that one weight is kept planned for


class Prepared:
    """A weight as the kernels read it, and the convolutions with it, by their sizes and options."""

    def __init__(self, weight: native.Weight) -> None:
        self.weight = weight
        self.convs: dict[tuple[object, ...], native.Conv] = {}
        self.repeats: dict[object, Any] = {}
        self.dense: Dense | None = None

    def last_kernel(self, sizes: tuple[int, int, int, int]) -> str | None:
        """The kernel that ran for an output of these sizes (N, C_out, H_out, W_out), the last planned; None: dense."""
        planned = [conv for key, conv in self.convs.items() if sizes == _layout_of(key).sizes]
        repeated = [call.executable.launch for call in self.repeats.values() if call.layout.sizes == sizes]
        conv = (planned or repeated)[-1]  # what is repeated may outlive what is planned
        kernel: str | None = None if conv is None else conv.kernel
        return kernel


def _layout_of(key: tuple[object, ...]) -> OutputLayout:
    return cast("OutputLayout", key[2])


def is_same(tensor: Tensor, copy: Tensor) -> bool:
    """``torch.equal`` of tensors of the same shape and dtype, twenty times as fast where they are contiguous."""
    if not (tensor.is_contiguous() and copy.is_contiguous()):
        return torch.equal(tensor, copy)
    return native.same_bytes(tensor.data_ptr(), copy.data_ptr(), tensor.nbytes)


_weights = WeightCache[Prepared](is_same)
find_prepared = _weights.find


def check_weight(
    packed: Tensor, codebook: Tensor, units: int, codewords: int, unit: tuple[int, int, int]
) -> native.Weight:
    """The weight decoded from packed tensors on the CPU, every index checked; raises as :func:`prepare`."""
    for name, tensor in (("packed_indices", packed), ("packed_codebook", codebook)):
        if tensor.dtype != torch.uint8:
            raise TypeError(f"{name} must be uint8, got {tensor.dtype}")
        check_memory(name, tensor)
    indices_bytes, codebook_bytes = packed.contiguous(), codebook.contiguous()
    return native.Weight(
        native.UNITS[unit],
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
        return Prepared(check_weight(packed, codebook, units, codewords, unit))

    return _weights.prepare(packed, codebook, units, codewords, unit, make)


def readable(args: ConvArgs) -> ConvArgs:
    """The arguments as kernels read them: floats float32, words and vectors contiguous, a residual's rows in a row.

    Raises:
        ValueError: a tensor's storage was resized to 0.
    """
    args = _readable(args, torch.float32)
    residual = args.residual
    if residual is None or residual.shape[2] <= 1 or residual.stride(2) == residual.shape[3] * residual.stride(3):
        return args
    return args._replace(residual=residual.contiguous())


def plan(
    weight: Prepared, args: ConvArgs, layout: OutputLayout, *, level: str | None = None, plan: str | None = None
) -> Executable:
    """The executable for arguments that kernels can read, planned at the first call with their sizes and options.

    A kernel computes, with sums = the convolution of x (of its sign, where ``activation_bits`` is 1), in float32,
    each operation rounded by itself, in this order, what is None left out::

        v = sums * scale;  v = v + bias;  v = v + residual;  v = activation(v);  v = v + shift;  y = v
        s = v + pack_shift;  plus = s > 0, or s >= 0 where nonzero is None;  nonzero = s > 0 or s < 0

    It runs on as many threads as torch, without the GIL.

    Args:
        weight: the prepared weight.
        args: on the CPU, as :func:`readable` gives them. A residual must not overlap y.
        layout: of the results; y contiguous or channels_last.
        level: None for the one asked for by ``SUBBIT_ISA``, else the machine's.
        plan: "sharing", "rows", "patches", "bits" or "dense"; None for the one asked for by ``SUBBIT_PLAN``, else
            the fastest.

    Raises:
        ValueError: sizes do not fit each other, or the level is unknown or more than the machine has.
    """
    conv = planned(weight, args, layout, level=level, plan=plan)
    if not conv.is_dense:
        return Kernel(conv, layout)
    if weight.dense is None:
        weight.dense = Dense(args.decoded(), is_same)
    return weight.dense


def planned(
    weight: Prepared, args: ConvArgs, layout: OutputLayout, *, level: str | None = None, plan: str | None = None
) -> native.Conv:
    """The compiled convolution, which may say that it is to run densely; arguments as for :func:`plan`."""
    x, residual = args.x, args.residual
    stride, padding, dilation = tuple(args.stride), tuple(args.padding), tuple(args.dilation)
    options = (
        stride, padding, dilation, args.groups, args.activation_bits, args.sign_zero, args.activation, level, plan,
    )  # fmt: skip
    x_strides = None if args.is_packed else x.stride()
    residual_strides = None if residual is None else residual.stride()
    threads = torch.get_num_threads()
    key = x.shape, x_strides, layout, residual_strides, threads, options
    conv = weight.convs.get(key)
    if conv is not None:
        return conv
    x_shape = (x.shape[0], args.in_channels, *x.shape[1:3]) if args.is_packed else x.shape
    conv = native.Conv(
        weight.weight,
        x_shape,
        x_strides,
        layout.sizes,
        layout.strides,
        residual_strides,
        layout.words is not None,
        stride,
        padding,
        dilation,
        args.groups,
        args.activation_bits == 1,
        bool(args.sign_zero) and not args.is_packed,
        ACTIVATIONS.index(args.activation),
        threads,
        level,
        plan,
    )
    if len(weight.convs) >= _MOST_CONVS:
        weight.convs.clear()
    weight.convs[key] = conv
    return conv


def nearest(units: Tensor, codebook: Tensor, level: str | None = None) -> Tensor:
    """The nearest codeword of every unit; see :func:`subbit_infer.ops.assignment.nearest`.

    Args:
        units: float32 (N, taps).
        codebook: float32 (K, taps).
        level: as for :func:`plan`.

    Raises:
        TypeError: a tensor is not float32.
        ValueError: the taps differ or are not 8 or 9, a storage was resized to 0, or the level is unknown or more than
            the machine has.
    """
    for name, tensor in (("units", units), ("codebook", codebook)):  # the kernel sees addresses alone
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name} must be float32, got {tensor.dtype}")
        check_memory(name, tensor)
    if units.dim() != 2 or codebook.dim() != 2 or units.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"units and codebook must be (N, taps) and (K, taps), got {tuple(units.shape)} and {tuple(codebook.shape)}"
        )
    units, codebook = units.contiguous(), codebook.contiguous()
    indices = torch.empty(len(units), dtype=torch.int64)
    count, taps = units.shape
    native.assign(
        units.data_ptr(), count, taps, codebook.data_ptr(), len(codebook), indices.data_ptr(),
        torch.get_num_threads(), level,
    )  # fmt: skip
    return indices


def pack(x: Tensor, shift: Tensor | None, sign_zero: int, level: str | None = None) -> tuple[Tensor, Tensor | None]:
    """The signs of x + shift as words, ``plus`` and ``nonzero``; see :func:`subbit_infer.pack`.

    Args:
        x: (N, C, H, W) floats of any strides, on the CPU.
        shift: (C,) floats, or None.
        sign_zero: 1 for zeros that count as +1, and no ``nonzero``.
        level: as in :func:`plan`.

    Raises:
        ValueError: a tensor's storage was resized to 0.
    """
    check_memory("x", x)
    check_memory("shift", shift)
    x = x.to(torch.float32)
    shift = None if shift is None else shift.to(torch.float32).contiguous()
    batch, channels, height, width = x.shape
    plus = torch.empty(batch, height, width, word_count(channels), dtype=torch.int64, device="cpu")
    nonzero = None if sign_zero else torch.empty_like(plus)
    if plus.numel():
        native.pack(
            x.data_ptr(), x.shape, x.stride(), 0 if shift is None else shift.data_ptr(), bool(sign_zero),
            plus.data_ptr(), 0 if nonzero is None else nonzero.data_ptr(), torch.get_num_threads(), level,
        )  # fmt: skip
    return plus, nonzero
