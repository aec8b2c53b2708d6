"""GPU planner: its question and its candidates (csrc/cuda/planner/select.cpp)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from subbit_infer.backends import native
from subbit_infer.backends.cuda import device as devices
from subbit_infer.core.conv_args import ConvArgs, OutputLayout

ELEMENTS = (torch.float32, torch.float16, torch.bfloat16)
"""What x, the residual and y may hold, in the order in which kernels number them."""

ROUTES = ("sharing", "product", "sparse")
"""The plans that kernels run; "dense" is torch's."""


class Shape(NamedTuple):
    """What the planner is asked about a call, beside the weight.

    Attributes:
        device: that it runs on.
        sizes: (N, C_out, H_out, W_out).
        input_pixels: H * W.
        groups: groups of channels.
        dtype: of a float x and result.
        binary: whether activations are binary.
        has_zeros: whether those may be 0.
        is_channels_last: whether x is.
        packed_input: whether x is words.
        float_output: whether floats are asked for.
        packed_output: whether words are.
        epilogue_commutes_with_rounding: whether the epilogue commutes with rounding to the dtype.
    """

    device: torch.device
    sizes: tuple[int, int, int, int]
    input_pixels: int
    groups: int
    dtype: torch.dtype
    binary: bool
    has_zeros: bool
    is_channels_last: bool
    packed_input: bool
    float_output: bool
    packed_output: bool
    epilogue_commutes_with_rounding: bool

    @classmethod
    def of(cls, args: ConvArgs, layout: OutputLayout) -> Shape:
        """The question for a call whose arguments kernels can read."""
        x = args.x
        height, width = x.shape[1:3] if args.is_packed else x.shape[2:]
        return cls(
            device=x.device,
            sizes=layout.sizes,
            input_pixels=height * width,
            groups=args.groups,
            dtype=layout.dtype,
            binary=args.activation_bits == 1,
            has_zeros=args.x_nonzero is not None if args.is_packed else True,  # the sign of NaN is 0
            is_channels_last=not args.is_packed and x.stride(1) == 1,
            packed_input=args.is_packed,
            float_output=layout.strides is not None,
            packed_output=layout.words is not None,
            epilogue_commutes_with_rounding=args.epilogue_commutes_with_rounding,
        )


class Candidate(NamedTuple):
    """A way to run a call, and the microseconds that it is predicted to take for the whole batch."""

    plan: str
    microseconds: float


class Planned(NamedTuple):
    """A convolution of settled sizes and options.

    Attributes:
        conv: what launches.
        shape: what the planner was asked.
        candidates: what it answered, the fastest first.
        plan: "sharing", "product", "sparse" or "dense": what was taken.
        prepared_weight: the weight as the plan's kernels read it; None where they read the indices alone.
    """

    conv: Any
    shape: Shape
    candidates: list[Candidate]
    plan: str
    prepared_weight: Tensor | None


def candidates(
    shape: Shape, units: int, codewords: int, unit: tuple[int, int, int], routes: tuple[str, ...] = ROUTES
) -> list[Candidate]:
    """Every way to run a call, the fastest first.

    Args:
        shape: the call.
        units: of one output channel.
        codewords: size of the codebook.
        unit: one of those that kernels are compiled for.
        routes: the plans that have a kernel for it; "dense" always is there.
    """
    facts = devices.device_of(shape.device)
    found = native.cuda_candidates(
        binary=shape.binary,
        element=ELEMENTS.index(shape.dtype),
        unit=native.UNITS[unit],
        codewords=codewords,
        units=units,
        outputs=shape.sizes[1] // shape.groups,
        groups=shape.groups,
        batch=shape.sizes[0],
        pixels=shape.sizes[2] * shape.sizes[3],
        out_width=shape.sizes[3],
        input_pixels=shape.input_pixels,
        has_zeros=shape.has_zeros,
        is_channels_last=shape.is_channels_last,
        packed_input=shape.packed_input,
        float_output=shape.float_output,
        packed_output=shape.packed_output,
        epilogue_commutes_with_rounding=shape.epilogue_commutes_with_rounding,
        capability=facts.capability,
        multiprocessors=facts.multiprocessors,
        routes=list(routes),
    )
    return [Candidate(c["plan"], c["microseconds"]) for c in found]
