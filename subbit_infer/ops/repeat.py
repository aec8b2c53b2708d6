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

from subbit_infer.backends import cpu
from subbit_infer.backends.executable import Executable, Launch
from subbit_infer.core.conv_args import ConvArgs, OutputLayout, Outputs
from subbit_infer.core.weight import PackedWeight
from subbit_infer.ops import dispatch
from subbit_infer.ops.execution import Execution

if TYPE_CHECKING:  # imported by the first call with a tensor on a CUDA device
    from subbit_infer.backends.cuda.weight import Prepared as CudaPrepared

Vectors = tuple[Tensor | None, ...]

_MOST = 32  # calls that one weight remembers


class Repeat(NamedTuple):
    """A call that was right. It holds its vectors, so that none other can come to have their addresses.

    Attributes:
        executable: what ran it.
        launch: the executable's.
        layout: of the results.
        vectors: scale, bias, slope, shift and pack_shift.
        pointers: their addresses, 0 for None.
        args: the call without x, x_nonzero and the residual, which are other tensors every time, and without the
            packed weight, which would live forever if what is kept for it held it.
    """

    executable: Executable
    launch: Launch | None
    layout: OutputLayout
    vectors: Vectors
    pointers: tuple[int, ...]
    args: ConvArgs


_runs_on_cuda: Callable[[Tensor], bool] = operator.attrgetter("is_cuda")  # a C function: no call in Python


def _find_on_cuda(
    packed: Tensor, codebook: Tensor, units: int, codewords: int, unit: tuple[int, int, int]
) -> CudaPrepared | None:
    from subbit_infer.backends.cuda.weight import find_prepared

    return find_prepared(packed, codebook, units, codewords, unit)


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
        The results; or None where nothing like it is remembered, or where something else is to see the call.
    """
    if not dispatch.nothing_watches():
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
    find = _find_on_cuda if _runs_on_cuda(x) else cpu.find_prepared
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
    sizes, dtype, strides, words, has_nonzero = call.layout
    if residual is not None and (residual.dtype != dtype or residual.shape != sizes):
        return None
    if call.launch is None:
        packed_indices, packed_codebook = weight.packed_indices, weight.packed_codebook
        args = call.args._replace(
            x=x, packed_indices=packed_indices, packed_codebook=packed_codebook, residual=residual, x_nonzero=x_nonzero
        )
        return call.executable(args)

    y = plus = nonzero = None
    if strides is not None:
        y = torch.empty_strided(sizes, strides, dtype=dtype, device=x.device)
    if words is not None:
        plus = torch.empty(words, dtype=torch.int64, device=x.device)
        nonzero = torch.empty_like(plus) if has_nonzero else None
    scale, bias, slope, shift, pack_shift = pointers
    call.launch(
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
    return Outputs(y, plus, nonzero)


def remember(args: ConvArgs, execution: Execution, options: tuple[object, ...]) -> None:
    """Keeps a call that an executable has just run on these very tensors.

    Args:
        args: the call, of ordinary tensors: ``dispatch.are_plain``.
        execution: what ran it.
        options: as in :func:`repeat`.
    """
    weight, executable, layout = execution
    x, x_nonzero, residual, vectors = args.x, args.x_nonzero, args.residual, args.vectors
    pointers = tuple([0 if v is None else v.data_ptr() for v in vectors])
    no: Any = None
    template = args._replace(x=no, packed_indices=no, packed_codebook=no, residual=None, x_nonzero=None)
    if len(weight.repeats) >= _MOST:
        weight.repeats.clear()
    key = (
        x.dtype, x.shape, x.stride(), x.device, None if x_nonzero is None else x_nonzero.device,
        None if residual is None else (residual.stride(), residual.device), torch.get_num_threads(), options,
    )  # fmt: skip
    with contextlib.suppress(TypeError):  # an option that is a list
        weight.repeats[key] = Repeat(executable, executable.launch, layout, vectors, pointers, template)
