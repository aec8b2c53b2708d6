"""Runs one convolution: checks it, and has the backend of its device plan and execute it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from subbit_infer import backends
from subbit_infer.backends import fallback
from subbit_infer.backends.executable import Executable, Prepared
from subbit_infer.core.activations import pack_signs
from subbit_infer.core.conv_args import ConvArgs, OutputLayout, Outputs
from subbit_infer.core.units import UNIT_3X3


class Execution(NamedTuple):
    """What can run a call once more on tensors like the ones it was given.

    Attributes:
        weight: the prepared weight.
        executable: what ran.
        layout: of the results.
    """

    weight: Prepared
    executable: Executable
    layout: OutputLayout


def convolve(args: ConvArgs, *, packed: bool) -> tuple[Outputs, Execution | None]:
    """Runs a convolution.

    Args:
        args: not checked yet.
        packed: whether x may be, and results may be, packed activations.

    Returns:
        The results; and what ran them, None where that was not on the very tensors given, or is not worth remembering.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value given.
    """
    sizes = args.check(packed)
    g, kh, kw = args.unit
    backend = backends.backend_of(args.x.device, (g, kh, kw))
    if backend is None:
        return fallback.convolve(args), None
    read = backend.readable(args)
    layout = read.output_layout(sizes)
    weight = backend.prepare(args.packed_indices, args.packed_codebook, args.units, args.codewords, (g, kh, kw))
    executable = backend.plan(weight, read, layout)
    y, plus, nonzero = executable(read)
    if y is not None and y.dtype != args.dtype:
        y = y.to(args.dtype)
    return Outputs(y, plus, nonzero), Execution(weight, executable, layout) if read is args else None


def pack(x: Tensor, shift: Tensor | None, sign_zero: int) -> tuple[Tensor, Tensor | None]:
    """The signs of x + shift as words, ``plus`` and ``nonzero``; arguments are checked already."""
    backend = backends.backend_of(x.device, UNIT_3X3)  # packing is the same for all units
    return pack_signs(x, shift, sign_zero) if backend is None else backend.pack(x, shift, sign_zero)
