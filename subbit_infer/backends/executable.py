"""What planning a convolution gives: something that runs it for every input of the same sizes and strides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from subbit_infer.core.activations import pack_signs
from subbit_infer.core.conv_args import ConvArgs, OutputLayout, Outputs

Launch = Callable[..., None]
"""A compiled convolution. It is called with addresses, 0 for what is not there: of x, x_nonzero, y, plus, nonzero,
scale, bias, residual, slope, shift and pack_shift."""


class Executable(Protocol):
    """A convolution with one weight, whose sizes, strides and options are settled.

    Attributes:
        launch: the compiled convolution, for calls that need nothing checked; None where there is none.
    """

    @property
    def launch(self) -> Launch | None:
        """See the class."""
        ...

    def __call__(self, args: ConvArgs) -> Outputs:
        """Runs it on arguments as kernels read them (:func:`readable`)."""
        ...


class Prepared(Protocol):
    """A weight as the kernels of a backend read it.

    Attributes:
        repeats: the calls that were made with it before (ops/repeat.py).
    """

    repeats: dict[object, Any]


class Backend(Protocol):
    """The convolutions of a kind of device; a module is one."""

    def find_prepared(
        self, packed: Tensor, codebook: Tensor, units: int, codewords: int, unit: tuple[int, int, int]
    ) -> Prepared | None:
        """The prepared weight, if there is one and its tensors have not changed since."""
        ...

    def prepare(
        self, packed: Tensor, codebook: Tensor, units: int, codewords: int, unit: tuple[int, int, int]
    ) -> Prepared:
        """The prepared weight, made and validated where there is none."""
        ...

    def readable(self, args: ConvArgs) -> ConvArgs:
        """The arguments as kernels read them: the very same object where they are so already."""
        ...

    def plan(self, weight: Any, args: ConvArgs, layout: OutputLayout) -> Executable:
        """The executable for arguments that kernels can read; what it takes to find it is kept with the weight."""
        ...

    def pack(self, x: Tensor, shift: Tensor | None, sign_zero: int) -> tuple[Tensor, Tensor | None]:
        """The signs of x + shift as words, ``plus`` and ``nonzero``."""
        ...


class Kernel(NamedTuple):
    """A compiled convolution, and the memory that its results take."""

    launch: Launch
    layout: OutputLayout

    def __call__(self, args: ConvArgs) -> Outputs:
        """Allocates the results and launches."""
        outputs = self.layout.empty(args.x.device)
        self.launch(*addresses(args, outputs))
        return outputs


def addresses(args: ConvArgs, outputs: Outputs) -> tuple[int, ...]:
    """What a :data:`Launch` is called with."""
    scale, bias, slope, shift, pack_shift = args.vectors
    given = args.x, args.x_nonzero, *outputs, scale, bias, args.residual, slope, shift, pack_shift
    return tuple(0 if t is None else t.data_ptr() for t in given)


Pack = Callable[[Tensor, Tensor | None, int], tuple[Tensor, Tensor | None]]


def outputs_of(args: ConvArgs, y: Tensor, pack: Pack = pack_signs) -> Outputs:
    """Results that torch has computed as y (N, C_out, H_out, W_out): packed and laid out as they are asked for."""
    plus, nonzero = pack(y, args.pack_shift, args.pack_sign_zero) if args.packed_output else (None, None)
    if not args.float_output:
        return Outputs(None, plus, nonzero)
    in_order = y.is_contiguous(memory_format=args.memory_format) and y.dtype == args.dtype
    sizes = y.shape[0], y.shape[1], y.shape[2], y.shape[3]
    return Outputs(y if in_order else args.empty(sizes).copy_(y), plus, nonzero)


def check_memory(name: str, tensor: Tensor | None) -> None:
    """Checks that a tensor has its memory.

    Raises:
        ValueError: its storage was resized to 0.
    """
    if tensor is not None and tensor.untyped_storage().nbytes() == 0 and tensor.numel() > 0:
        raise ValueError(f"{name} must have its memory: its storage was resized to 0")


def readable(args: ConvArgs, dtype: torch.dtype) -> ConvArgs:
    """The arguments with words and vectors contiguous, vectors float32, a float x and the residual in a dtype.

    Args:
        args: checked.
        dtype: of a float x and of the residual.

    Returns:
        ``args`` itself where they are so already.

    Raises:
        ValueError: a tensor's storage was resized to 0.
    """
    for name in ("x", "x_nonzero", "residual", "scale", "bias", "slope", "shift", "pack_shift"):
        check_memory(name, getattr(args, name))
    changes: dict[str, Any] = {}

    def put(name: str, given: Tensor | None, wanted: Tensor | None) -> None:
        if given is not wanted and wanted is not None:
            changes[name] = wanted

    put("x", args.x, args.x.contiguous() if args.is_packed else args.x.to(dtype))
    if args.x_nonzero is not None:
        put("x_nonzero", args.x_nonzero, args.x_nonzero.contiguous())
    if args.residual is not None:
        put("residual", args.residual, args.residual.to(dtype))
    for name, vector in zip(("scale", "bias", "slope", "shift", "pack_shift"), args.vectors, strict=True):
        if vector is not None:
            put(name, vector, vector.to(torch.float32).contiguous())
    return args._replace(**changes) if changes else args
