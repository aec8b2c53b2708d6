"""Calls that were made before: run again without checking again.

Checking and planning a call takes longer than many a layer does. What has been found right once is right again for
the same weight and vectors (the very same tensors, unchanged in place) and an input of the same sizes and strides.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from subbit_infer.backends import cpu as _native
from subbit_infer.core.conv_args import is_bare
from subbit_infer.core.weight import PackedWeight
from subbit_infer.ops import dispatch as _dispatch

if TYPE_CHECKING:  # imported by the first call with a tensor on a CUDA device
    from subbit_infer.backends.cuda.runtime import Launch
    from subbit_infer.backends.cuda.weight import Prepared as CudaPrepared

Vectors = tuple[Tensor | None, ...]
Outputs = tuple[Tensor | None, Tensor | None, Tensor | None]  # y, plus, nonzero

_MOST = 32  # calls that one weight remembers


class Repeat(NamedTuple):
    """A call that was right. It holds its vectors, so that none other can come to have their addresses."""

    conv: _native.Conv | Launch
    sizes: tuple[int, ...]
    dtype: torch.dtype  # of floats
    strides: tuple[int, ...] | None  # of a float output
    words: tuple[int, ...] | None  # the shape of packed outputs
    has_nonzero: bool
    vectors: Vectors
    pointers: tuple[int, ...]
    dense: tuple[Any, ...] | None  # scale, bias and geometry of the dense convolution that runs instead


def _pointers(vectors: Vectors) -> tuple[int, ...]:
    return tuple([0 if v is None else v.data_ptr() for v in vectors])


def _key(x: Tensor, x_nonzero: Tensor | None, residual: Tensor | None, options: tuple[object, ...]) -> object:
    of_nonzero = None if x_nonzero is None else x_nonzero.device
    of_residual = None if residual is None else (residual.stride(), residual.device)
    return x.dtype, x.shape, x.stride(), x.device, of_nonzero, of_residual, torch.get_num_threads(), options


_runs_on_cuda: Callable[[Tensor], bool] = operator.attrgetter("is_cuda")  # a C function: no call in Python


def _find_on_cuda(
    packed: Tensor, codebook: Tensor, units: int, codewords: int, unit: tuple[int, int, int]
) -> CudaPrepared | None:
    from subbit_infer.backends.cuda.weight import find_prepared

    return find_prepared(packed, codebook, units, codewords, unit)


def _is_plain(t: Tensor | None) -> bool:
    return t is None or (
        type(t) is Tensor
        and (t.is_cpu or t.is_cuda)
        and t.layout is torch.strided
        and not t.is_neg()
        and t.untyped_storage().nbytes() > 0
    )


def repeat(
    x: Tensor,
    x_nonzero: Tensor | None,
    weight: PackedWeight,
    residual: Tensor | None,
    vectors: Vectors,
    options: tuple[object, ...],
) -> Outputs | None:
    """Runs a call that is remembered.

    Args:
        x: floats, or the words of packed activations.
        x_nonzero: of those, or None.
        weight: the weight.
        residual: or None.
        vectors: scale, bias, slope, shift and pack_shift.
        options: everything else that was given.

    Returns:
        y, plus and nonzero, None for what is not asked for; or None where nothing like it is remembered, or where
        something else is to see the call.
    """
    if not _dispatch.nothing_watches():
        return None
    # Everything below stands here and not in functions of its own: each would add to every call.
    grad = torch.is_grad_enabled()
    for t in (x, x_nonzero, residual):
        if t is not None and (
            type(t) is not Tensor
            or not (t.is_cpu or t.is_cuda)
            or t.layout is not torch.strided
            or t.is_neg()
            or t.untyped_storage().nbytes() == 0
            or (grad and t.requires_grad)
        ):
            return None
    find = _find_on_cuda if _runs_on_cuda(x) else _native.find_prepared
    prepared = find(weight.packed_indices, weight.packed_codebook, weight.units, weight.codewords, weight.unit)
    if prepared is None:
        return None
    key = (
        x.dtype, x.shape, x.stride(), x.device, None if x_nonzero is None else x_nonzero.device,
        None if residual is None else (residual.stride(), residual.device), torch.get_num_threads(), options,
    )  # fmt: skip
    try:
        call = prepared.repeats.get(key)
    except TypeError:  # an option that is a list
        return None
    if not isinstance(call, Repeat):
        return None
    pointers = call.pointers
    for vector, known, pointer in zip(vectors, call.vectors, pointers, strict=True):
        if vector is not known:
            return None
        if vector is not None and (vector.data_ptr() != pointer or (grad and vector.requires_grad)):
            return None
    if residual is not None and (residual.dtype != call.dtype or residual.shape != call.sizes):
        return None
    if call.dense is not None:
        assert isinstance(prepared, _native.Prepared)
        return prepared.convolve_densely(x, *call.dense), None, None

    y = plus = nonzero = None
    if call.strides is not None:
        y = torch.empty_strided(call.sizes, call.strides, dtype=call.dtype, device=x.device)
    if call.words is not None:
        plus = torch.empty(call.words, dtype=torch.int64, device=x.device)
        nonzero = torch.empty_like(plus) if call.has_nonzero else None
    scale, bias, slope, shift, pack_shift = pointers
    call.conv(
        x.data_ptr(),
        0 if x_nonzero is None else x_nonzero.data_ptr(),
        0 if y is None else y.data_ptr(),
        0 if plus is None else plus.data_ptr(),
        0 if nonzero is None else nonzero.data_ptr(),
        scale,
        bias,
        0 if residual is None else residual.data_ptr(),
        slope,
        shift,
        pack_shift,
    )
    return y, plus, nonzero


def remember(
    x: Tensor,
    x_nonzero: Tensor | None,
    weight: PackedWeight,
    residual: Tensor | None,
    vectors: Vectors,
    options: tuple[object, ...],
    outputs: Outputs,
    geometry: tuple[Any, ...],
) -> None:
    """Keeps a call that kernels have just run, if they ran it on these very tensors.

    Args:
        x: as in :func:`repeat`; so are x_nonzero, weight, residual, vectors and options.
        x_nonzero: or None.
        weight: the weight.
        residual: or None.
        vectors: scale, bias, slope, shift and pack_shift.
        options: everything else that was given.
        outputs: what it gave.
        geometry: stride, padding, dilation, groups, activation_bits, sign_zero and activation, as kernels take them.
    """
    y, plus, nonzero = outputs
    find = _find_on_cuda if _runs_on_cuda(x) else _native.find_prepared
    prepared = find(weight.packed_indices, weight.packed_codebook, weight.units, weight.codewords, weight.unit)
    tensors = (x, x_nonzero, residual, *vectors)
    as_they_are = all(_is_plain(t) for t in tensors) and all(v is None or _native.is_vector(v) for v in vectors)
    if _runs_on_cuda(x):
        from subbit_infer.backends.cuda.runtime import launch_of, reads
    else:
        reads = _native.reads
    if prepared is None or not as_they_are or not reads(x, x_nonzero, residual):
        return
    if y is not None:
        sizes = tuple(y.shape)
    else:
        assert plus is not None
        sizes = x.shape[0], weight.out_channels, *plus.shape[1:3]
    if 0 in sizes:
        return
    scale, bias, *others = vectors
    dense = None
    conv: _native.Conv | Launch
    if not isinstance(prepared, _native.Prepared):
        *_, activation = geometry
        bare = is_bare(activation, plus is not None, scale, bias, residual, others[1])
        conv = launch_of(prepared, x, x_nonzero, y, residual, sizes, *geometry, plus is not None, bare)
        if conv.is_dense:
            return  # cuDNN takes longer than the checks
    else:
        conv = _native.planned(prepared, x, y, residual, plus is not None, sizes, *geometry)
    if conv.is_dense:
        stride, padding, dilation, groups, activation_bits, _, activation = geometry
        has_more = activation != "none" or residual is not None or any(v is not None for v in others)
        if plus is not None or has_more or activation_bits == 1:
            return
        dense = scale, bias, stride, padding, dilation, groups
    strides = None if y is None else y.stride()
    words = None if plus is None else tuple(plus.shape)
    dtype = x.dtype if x.is_floating_point() else torch.float32
    call = Repeat(conv, sizes, dtype, strides, words, nonzero is not None, vectors, _pointers(vectors), dense)
    if len(prepared.repeats) >= _MOST:
        prepared.repeats.clear()
    with contextlib.suppress(TypeError):  # an option that is a list
        prepared.repeats[_key(x, x_nonzero, residual, options)] = call
