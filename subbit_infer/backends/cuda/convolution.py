"""Convolutions on CUDA devices: plans, and what launches them.

Nothing here waits for the device but what is done once per weight: its first call on a device, and its first call by a
plan that reads it in another form. So captures of CUDA graphs need one call before them, as torch's own layers do.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from subbit_infer.backends import native
from subbit_infer.backends.cuda import device as devices
from subbit_infer.backends.cuda import planner, runtime, self_test
from subbit_infer.backends.cuda.cudnn import Cudnn
from subbit_infer.backends.cuda.packing import pack
from subbit_infer.backends.cuda.planner import ELEMENTS, ROUTES, Candidate, Planned, Shape
from subbit_infer.backends.cuda.weight import Prepared, find_prepared, prepare
from subbit_infer.backends.executable import Executable, Kernel
from subbit_infer.backends.executable import readable as _readable
from subbit_infer.core.conv_args import ConvArgs, OutputLayout, Sizes
from subbit_infer.core.epilogue import ACTIVATIONS

_MOST_CONVS = 32  # sizes and options that one weight is kept planned for

__all__ = ["find_prepared", "last_planned", "pack", "plan", "planned", "prepare", "readable"]


def readable(args: ConvArgs) -> ConvArgs:
    """The arguments as kernels read them: words and vectors contiguous, x and the residual of one dtype.

    A residual of another dtype than x's must not be rounded, so both become float32 then.

    Raises:
        ValueError: a tensor's storage was resized to 0.
    """
    of_one_dtype = args.residual is None or args.residual.dtype == args.dtype
    return _readable(args, args.dtype if of_one_dtype else torch.float32)


def plan(weight: Prepared, args: ConvArgs, layout: OutputLayout, *, wanted: str | None = None) -> Executable:
    """The executable for arguments that kernels can read, planned at the first call with their sizes and options.

    Its kernels compute what :func:`subbit_infer.backends.cpu.plan` says, started on the current stream of x's device
    without waiting for it. Scratch memory is torch's, given back when the launch returns: what takes it next on this
    stream comes after it.

    Args:
        weight: the prepared weight.
        args: all on one CUDA device, as :func:`readable` gives them.
        layout: of the results; y in x's dtype, float32 where x is packed.
        wanted: the plan that runs it where it can, tried out or not; None for the planner's choice of what is right.

    Raises:
        ValueError: sizes do not fit each other, or their product overflows.
        RuntimeError: kernels are not built for the device; or something that waits for the device comes first and a
            CUDA graph is being captured.
    """
    if 0 in layout.sizes:
        return Kernel(_nothing, layout)
    found = planned(weight, args, layout, wanted)
    if found.plan == "dense":
        return Cudnn(weight, layout)
    return Kernel(Launch(weight, found, args.x.device), layout)


def planned(weight: Prepared, args: ConvArgs, layout: OutputLayout, wanted: str | None = None) -> Planned:
    """What :func:`plan` found or finds for these sizes and options."""
    x = args.x
    stride, padding, dilation = tuple(args.stride), tuple(args.padding), tuple(args.dilation)
    x_strides = None if args.is_packed else x.stride()
    residual_strides = None if args.residual is None else args.residual.stride()
    options = (
        stride, padding, dilation, args.groups, args.activation_bits, args.sign_zero, args.activation,
        args.epilogue_commutes_with_rounding,
    )  # fmt: skip
    key = x.dtype, x.shape, args.x_nonzero is None, layout, x_strides, residual_strides, options
    found = weight.convs.get(key)
    if found is not None:
        return found
    capability = devices.device_of(x.device).capability
    conv = runtime.module().Conv(
        unit=runtime.unit_of(weight.unit),
        codewords=weight.count,
        element=ELEMENTS.index(layout.dtype),
        x_shape=(x.shape[0], args.in_channels, *x.shape[1:3]) if args.is_packed else tuple(x.shape),
        x_strides=x_strides,
        y_shape=layout.sizes,
        y_strides=layout.strides,
        residual_strides=residual_strides,
        packs=layout.words is not None,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=args.groups,
        binary=args.activation_bits == 1,
        sign_zero=bool(args.sign_zero) and not args.is_packed,
        activation=ACTIVATIONS.index(args.activation),
        capability=capability,
    )
    shape = Shape.of(args, layout)
    routes = tuple(route for route in ROUTES if conv.can_run(route))
    candidates = planner.candidates(shape, args.units, weight.count, weight.unit, routes)
    if wanted is None:
        wanted = _choose(candidates, weight, shape)
    elif wanted not in routes:
        wanted = "dense"
    kind = args.groups, args.activation_bits, capability
    arranged = None if wanted == "dense" else _arranged(weight, conv, wanted, kind)
    made = Planned(conv, shape, candidates, wanted, arranged)
    if len(weight.convs) >= _MOST_CONVS:
        weight.convs.clear()
    weight.convs[key] = made
    return made


def last_planned(weight: Prepared, sizes: Sizes) -> Planned | None:
    """What was planned last for an output of these sizes; None for sizes that are empty."""
    found = [made for made in weight.convs.values() if made.shape.sizes == sizes]
    return found[-1] if found else None


@functools.cache
def _is_right(
    plan_name: str, device: torch.device, unit: tuple[int, int, int], codewords: int, dtype: torch.dtype, binary: bool
) -> bool:
    """Whether a plan's kernels compute what they should on a device: tried out once, which waits for it."""
    devices.refuse_capture(device)
    with torch.inference_mode(False), torch.no_grad():
        for problem in self_test.problems(device, unit, codewords, dtype, binary):
            executable = plan(problem.weight, problem.args, problem.layout, wanted=plan_name)
            if executable.launch is None:  # the plan has no kernel for it
                continue
            y = executable(problem.args).y
            if y is None or not torch.equal(y, problem.expected.to(dtype)):
                name = devices.device_of(device).name
                warnings.warn(
                    f"the kernels of the plan {plan_name!r} compute wrong results on {device} ({name}) with {dtype}, "
                    f"activations of {1 if binary else 32} bits, the unit {unit} and {codewords} codewords; they are "
                    "not used there. Please report it with what `subbit env` says",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return False
    return True


def _choose(found: list[Candidate], weight: Prepared, shape: Shape) -> str:
    """The plan that ``SUBBIT_PLAN`` asks for where there is one, else the fastest, of those that are right."""
    wanted = native.wanted_plan()
    if wanted != "dense":
        runtime.check_device(shape.device)
    plans = sorted((c.plan for c in found), key=lambda plan: plan != wanted)  # stable: the others stay in order
    kind = shape.device, weight.unit, weight.count, shape.dtype, shape.binary
    return next(plan for plan in plans if plan == "dense" or _is_right(plan, *kind))


def _arranged(weight: Prepared, conv: Any, route: str, kind: object) -> Tensor | None:
    """The weight as a route's kernels read it, kept; None where they read the indices alone."""
    key = route, kind
    found = weight.arranged.get(key)
    if found is not None:
        return found
    size = conv.weight_bytes(route)
    if size == 0:
        return None
    device = weight.words.device
    devices.refuse_capture(device)
    with torch.inference_mode(False):
        made = torch.empty(size, dtype=torch.uint8, device=device)
    with devices.stream_of(device) as stream:
        conv.prepare(
            route=route,
            device=device.index,
            stream=stream,
            indices=weight.words.data_ptr(),
            codebook=weight.codewords.data_ptr(),
            weight=made.data_ptr(),
        )
    devices.settle(device)
    weight.arranged[key] = made
    return made


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _nothing(*addresses: int) -> None:
    """What launches the kernels of an empty result."""


class Launch:
    """A planned convolution with its weight, which is called with addresses, as the CPU's are."""

    def __init__(self, weight: Prepared, found: Planned, device: torch.device) -> None:
        self._weight = weight
        self._planned = found
        self._device = device

    def __call__(
        self, x: int, x_nonzero: int, y: int, plus: int, nonzero: int, scale: int, bias: int, residual: int, slope: int,
        shift: int, pack_shift: int,
    ) -> None:  # fmt: skip
        """Starts the kernels on the current stream of the device; 0 stands for what is not there."""
        found, weight = self._planned, self._weight
        scratch_bytes = found.conv.scratch_bytes(found.plan, x, x_nonzero)
        scratch = torch.empty(scratch_bytes, dtype=torch.uint8, device=self._device) if scratch_bytes else None
        with devices.stream_of(self._device) as stream:
            found.conv(
                route=found.plan,
                device=self._device.index,
                stream=stream,
                x=x,
                x_nonzero=x_nonzero,
                indices=weight.words.data_ptr(),
                codebook=weight.codewords.data_ptr(),
                prepared_weight=_pointer(found.prepared_weight),
                scale=scale,
                bias=bias,
                residual=residual,
                slope=slope,
                shift=shift,
                y=y,
                y_plus=plus,
                y_nonzero=nonzero,
                pack_shift=pack_shift,
                scratch=_pointer(scratch),
            )
