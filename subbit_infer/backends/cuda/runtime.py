"""The one file that touches the compiled CUDA module: says why there is none, plans and launches.

Nothing here waits for the device but what is done once for a weight: its first call on a device, and its first call by
a plan that reads it in another form. So captures of CUDA graphs need one call before them, as torch's own layers do.
"""

from __future__ import annotations

import functools
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from subbit_infer.backends import cpu as _native
from subbit_infer.backends.cuda import device as _cuda_device
from subbit_infer.backends.cuda import planner as _cuda_plan
from subbit_infer.backends.cuda import self_test as _cuda_check
from subbit_infer.backends.cuda.planner import ELEMENTS, ROUTES, Candidate, Planned, Shape
from subbit_infer.backends.cuda.weight import Prepared
from subbit_infer.core.activations import word_count
from subbit_infer.core.epilogue import ACTIVATIONS

_C_cuda: ModuleType | None = None
_missing = ""
try:
    import subbit_infer._C_cuda as _C_cuda
except ModuleNotFoundError:
    _missing = (
        "subbit_infer._C_cuda was not built: no nvcc that works was found when subbit_infer was installed "
        "(installing with SUBBIT_CUDA=ON says what is wrong with it)"
    )
except ImportError as error:
    _missing = f"subbit_infer._C_cuda cannot be loaded: {error}"

_UNITS = {} if _C_cuda is None else {(1, 3, 3): _C_cuda.Unit.k3x3, (8, 1, 1): _C_cuda.Unit.k8x1x1}
_MOST_CONVS = 32  # sizes and options that one weight is kept planned for


def reason() -> str | None:
    """Why no CUDA kernels can run in this process, in one line; None where they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if _C_cuda is None:
        return _missing
    return None if torch.cuda.is_available() else "torch finds no CUDA device and driver that it can use"


def is_built() -> bool:
    """Whether there are kernels for tensors on CUDA devices; part of every call, and so less than :func:`reason`."""
    return _C_cuda is not None and torch.version.cuda is not None


def _built() -> str:
    assert _C_cuda is not None
    *others, last = (f"sm_{number}" for number in _C_cuda.architectures)
    return f"{', '.join([*others, last])} and, through the PTX of {last}, later ones"


def is_built_for(capability: int) -> bool:
    """Whether there is machine code for an architecture (of its major version, not a later one), or PTX."""
    if _C_cuda is None:
        return False
    numbers: list[int] = _C_cuda.architectures
    same_major = any(n // 10 == capability // 10 and n <= capability for n in numbers)
    return same_major or capability >= numbers[-1]


def check_device(device: torch.device) -> None:
    """Checks that kernels are built for a device.

    Raises:
        RuntimeError: they are not; the message names the architectures that they are built for.
    """
    facts = _cuda_device.device_of(device)
    if not is_built_for(facts.capability):
        raise RuntimeError(
            f"x must be on a device that kernels are built for ({_built()}), got {device}: {facts.name}, "
            f"sm_{facts.capability}; SUBBIT_PLAN=dense runs it by torch"
        )


def info() -> dict[str, Any]:
    """What there is of CUDA: for bug reports, as strings, numbers, lists and dicts.

    Returns:
        ``reason`` (why no kernels can run, or None), ``torch`` (the CUDA version of torch, or None), ``built``
        (whether the module is there), ``cuda`` (the version that it was built with), ``architectures`` (it was built
        for) and ``devices``, each with ``name``, ``capability``, ``multiprocessors`` and ``supported``.
    """
    count = torch.cuda.device_count() if torch.version.cuda is not None and torch.cuda.is_available() else 0
    devices = map(_cuda_device.facts_of, range(count))
    return {
        "reason": reason(),
        "torch": torch.version.cuda,
        "built": _C_cuda is not None,
        "cuda": None if _C_cuda is None else f"{_C_cuda.version // 1000}.{_C_cuda.version % 1000 // 10}",
        "architectures": [] if _C_cuda is None else list(_C_cuda.architectures),
        "devices": [{**facts._asdict(), "supported": is_built_for(facts.capability)} for facts in devices],
    }


@functools.cache
def _is_right(
    plan: str, device: torch.device, unit: tuple[int, int, int], codewords: int, dtype: torch.dtype, binary: bool
) -> bool:
    """Whether a plan's kernels compute what they should on a device: tried out once, which waits for it."""
    _cuda_device.refuse_capture(device)
    bits = 1 if binary else 32
    with torch.inference_mode(False), torch.no_grad():
        for problem in _cuda_check.problems(device, unit, codewords, dtype, binary):
            y = torch.empty_like(problem.expected, dtype=dtype)
            sizes = (y.shape[0], y.shape[1], y.shape[2], y.shape[3])
            is_started = conv2d(
                problem.weight, problem.x, y, None, None, (1, 1), problem.padding, (1, 1), 1, bits, 0, is_bare=False,
                sizes=sizes, plan=plan,
            )  # fmt: skip
            if is_started and not torch.equal(y, problem.expected.to(dtype)):
                name = _cuda_device.device_of(device).name
                warnings.warn(
                    f"the kernels of the plan {plan!r} compute wrong results on {device} ({name}) with {dtype}, "
                    f"activations of {bits} bits, the unit {unit} and {codewords} codewords; they are not used there. "
                    "Please report it with what `subbit env` says",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return False
    return True


def _choose(found: list[Candidate], weight: Prepared, shape: Shape) -> str:
    """The plan that ``SUBBIT_PLAN`` asks for where there is one, else the quickest, of those that are right."""
    wanted = _native.wanted_plan()
    if wanted != "dense":
        check_device(shape.device)
    plans = sorted((c.plan for c in found), key=lambda plan: plan != wanted)  # stable: the others stay in order
    kind = shape.device, weight.unit, weight.count, shape.dtype, shape.binary
    return next(plan for plan in plans if plan == "dense" or _is_right(plan, *kind))


def planned(
    weight: Prepared,
    x: Tensor,
    x_nonzero: Tensor | None,
    y: Tensor | None,
    residual: Tensor | None,
    sizes: tuple[int, int, int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    activation_bits: int,
    sign_zero: int,
    activation: str,
    packs: bool,
    is_bare: bool,
    plan: str | None = None,
) -> Planned:
    """The convolution for these sizes and options, planned at their first call; see :func:`conv2d`."""
    assert _C_cuda is not None
    packed = x.dtype == torch.int64
    strides = [None if t is None else t.stride() for t in (None if packed else x, y, residual)]
    options = stride, padding, dilation, groups, activation_bits, sign_zero, activation, packs, is_bare
    key = x.dtype, x.shape, x_nonzero is None, sizes, *strides, options
    found = weight.convs.get(key)
    if found is not None:
        return found
    dtype = torch.float32 if packed else x.dtype
    x_shape = (x.shape[0], weight.channels * groups, *x.shape[1:3]) if packed else tuple(x.shape)
    capability = _cuda_device.device_of(x.device).capability
    conv = _C_cuda.Conv(
        unit=_UNITS[weight.unit],
        codewords=weight.count,
        element=ELEMENTS.index(dtype),
        x_shape=x_shape,
        x_strides=strides[0],
        y_shape=sizes,
        y_strides=strides[1],
        residual_strides=strides[2],
        packs=packs,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        binary=activation_bits == 1,
        sign_zero=bool(sign_zero) and not packed,
        activation=ACTIVATIONS.index(activation),
        capability=capability,
    )
    has_zeros = x_nonzero is not None if packed else True  # the sign of NaN is 0
    is_channels_last = not packed and x.stride(1) == 1
    shape = Shape(
        x.device, sizes, x_shape[2] * x_shape[3], groups, dtype, activation_bits == 1, has_zeros, is_channels_last,
        packed, y is not None, packs, is_bare,
    )  # fmt: skip
    routes = tuple(route for route in ROUTES if conv.can_run(route))
    found_plans = _cuda_plan.candidates(shape, weight.channels // weight.unit[0], weight.count, weight.unit, routes)
    if plan is None:
        plan = _choose(found_plans, weight, shape)
    elif plan not in routes:
        plan = "dense"
    arranged = None if plan == "dense" else _arranged(weight, conv, plan, (groups, activation_bits, capability))
    made = Planned(conv, shape, found_plans, plan, arranged)
    if len(weight.convs) >= _MOST_CONVS:
        weight.convs.clear()
    weight.convs[key] = made
    return made


def last_planned(weight: Prepared, sizes: tuple[int, int, int, int]) -> Planned | None:
    """What was planned last for an output of these sizes; None for sizes that are empty."""
    found = [made for made in weight.convs.values() if made.shape.sizes == sizes]
    return found[-1] if found else None


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
    _cuda_device.refuse_capture(device)
    with torch.inference_mode(False):
        made = torch.empty(size, dtype=torch.uint8, device=device)
    with _cuda_device.stream_of(device) as stream:
        conv.prepare(
            route=route,
            device=device.index,
            stream=stream,
            indices=weight.words.data_ptr(),
            codebook=weight.codewords.data_ptr(),
            weight=made.data_ptr(),
        )
    _cuda_device.settle(device)
    weight.arranged[key] = made
    return made


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class Launch:
    """A planned convolution with its weight, which is called with addresses, as the CPU's are.

    Attributes:
        is_dense: whether the plan is to convolve densely: there is nothing to launch.
    """

    def __init__(self, weight: Prepared, found: Planned, device: torch.device) -> None:
        self.is_dense = found.plan == "dense"
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
        with _cuda_device.stream_of(self._device) as stream:
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


def launch_of(weight: Prepared, x: Tensor, *arguments: Any) -> Launch:
    """What runs a convolution; arguments are those of :func:`planned`."""
    return Launch(weight, planned(weight, x, *arguments), x.device)


def reads(x: Tensor, x_nonzero: Tensor | None, residual: Tensor | None) -> bool:
    """Whether kernels can read these as they are."""
    if x.dtype == torch.int64:
        can_read = x.is_contiguous() and (x_nonzero is None or x_nonzero.is_contiguous())
        dtype = torch.float32
    else:
        can_read, dtype = x.dtype in ELEMENTS, x.dtype
    return can_read and (residual is None or residual.dtype == dtype)


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
    *,
    residual: Tensor | None = None,
    activation: str = "none",
    slope: Tensor | None = None,
    shift: Tensor | None = None,
    x_nonzero: Tensor | None = None,
    plus: Tensor | None = None,
    nonzero: Tensor | None = None,
    pack_shift: Tensor | None = None,
    is_bare: bool,
    sizes: tuple[int, int, int, int],
    plan: str | None = None,
) -> bool:
    """Starts a convolution on the current stream of x's device, and returns without waiting for it.

    It computes what :func:`subbit_infer.backends.cpu.conv2d` says. All tensors are on one CUDA device; the callers have
    checked every other argument. Scratch memory is torch's, given back when the launch returns: what takes it next on
    this stream comes after it.

    Args:
        weight: the prepared weight.
        x: float32, float16 or bfloat16 (N, C_in, H, W) of any strides; or the ``plus`` words of packed activations,
            contiguous.
        y: (N, C_out, H_out, W_out) of x's dtype, float32 where x is packed, of any strides; None: not asked for.
        scale: float32 (C_out,), contiguous; so are bias, slope, shift and pack_shift.
        bias: as scale.
        stride: rows, columns; so are padding and dilation.
        padding: zeros, which contribute nothing.
        dilation: distance of the taps.
        groups: groups of channels.
        activation_bits: 32, or 1 to take the sign of x; 1 where x is packed.
        sign_zero: what the sign of an exact 0 of a float x is.
        residual: of y's sizes and dtype, any strides.
        activation: one of ``epilogue.ACTIVATIONS``.
        slope: as scale; given if and only if ``activation`` is "prelu".
        shift: as scale.
        x_nonzero: where x is packed, its ``nonzero`` words; None where no activation is 0.
        plus: int64 words of the result, contiguous; None: not asked for.
        nonzero: the same; None where zeros count as +1.
        pack_shift: as scale.
        is_bare: whether nothing follows the sums but what rounding to y's dtype does not change.
        sizes: (N, C_out, H_out, W_out).
        plan: what runs it where it can, tried out or not; None for the planner's choice of what is right.

    Returns:
        Whether it was started: not where the plan is to convolve densely, which is the caller's to do.

    Raises:
        ValueError: sizes do not fit each other, or their product overflows.
        RuntimeError: kernels are not built for the device; a launch failed; or something that waits for the device
            comes first and a CUDA graph is being captured.
    """
    found = planned(
        weight, x, x_nonzero, y, residual, sizes, stride, padding, dilation, groups, activation_bits, sign_zero,
        activation, plus is not None, is_bare, plan,
    )  # fmt: skip
    launch = Launch(weight, found, x.device)
    if launch.is_dense:
        return False
    launch(
        x.data_ptr(), _pointer(x_nonzero), _pointer(y), _pointer(plus), _pointer(nonzero), _pointer(scale),
        _pointer(bias), _pointer(residual), _pointer(slope), _pointer(shift), _pointer(pack_shift),
    )  # fmt: skip
    return True


def pack(x: Tensor, shift: Tensor | None, sign_zero: int) -> tuple[Tensor, Tensor | None]:
    """The signs of x + shift as words, ``plus`` and ``nonzero``, started on the current stream of x's device.

    Args:
        x: float32, float16 or bfloat16 (N, C, H, W) of any strides.
        shift: float32 (C,), contiguous, or None.
        sign_zero: 1 for zeros that count as +1, and no ``nonzero``.

    Raises:
        RuntimeError: kernels are not built for the device, or the launch failed.
    """
    assert _C_cuda is not None
    check_device(x.device)
    batch, channels, height, width = x.shape
    plus = torch.empty(batch, height, width, word_count(channels), dtype=torch.int64, device=x.device)
    nonzero = None if sign_zero else torch.empty_like(plus)
    with _cuda_device.stream_of(x.device) as stream:
        _C_cuda.pack(
            device=x.device.index,
            stream=stream,
            x=x.data_ptr(),
            element=ELEMENTS.index(x.dtype),
            shape=x.shape,
            strides=x.stride(),
            shift=_pointer(shift),
            plus=plus.data_ptr(),
            nonzero=_pointer(nonzero),
        )
    return plus, nonzero
