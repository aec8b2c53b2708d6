"""The one file that touches the compiled CUDA module: says why there is none, prepares weights, plans and launches.

Nothing here waits for the device but what is done once for a weight: its first call on a device, and its first call by
a plan that reads it in another form. So captures of CUDA graphs need one call before them, as torch's own layers do.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from subbit_infer import _native
from subbit_infer._cache import PerTensor
from subbit_infer.activations import word_count
from subbit_infer.epilogue import ACTIVATIONS
from subbit_infer.weight import unpack_codebook

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

ELEMENTS = (torch.float32, torch.float16, torch.bfloat16)
"""What x, the residual and y may hold, in the order in which kernels number them."""

ROUTES = ("sharing", "product")
"""The plans that kernels run; "dense" is torch's."""

_UNITS = {} if _C_cuda is None else {(1, 3, 3): _C_cuda.Unit.k3x3, (8, 1, 1): _C_cuda.Unit.k8x1x1}
_WORD_BYTES = 4  # rows of indices are whole words on the device
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


class Device(NamedTuple):
    """What the planner needs of a device.

    Attributes:
        name: as the driver has it.
        capability: major * 10 + minor.
        multiprocessors: their number.
    """

    name: str
    capability: int
    multiprocessors: int


@functools.cache
def _device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device(properties.name, properties.major * 10 + properties.minor, properties.multi_processor_count)


def device_of(device: torch.device) -> Device:
    """The device's facts; asked for once."""
    return _device(torch.cuda.current_device() if device.index is None else device.index)


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
    facts = device_of(device)
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
    return {
        "reason": reason(),
        "torch": torch.version.cuda,
        "built": _C_cuda is not None,
        "cuda": None if _C_cuda is None else f"{_C_cuda.version // 1000}.{_C_cuda.version % 1000 // 10}",
        "architectures": [] if _C_cuda is None else list(_C_cuda.architectures),
        "devices": [
            {**facts._asdict(), "supported": is_built_for(facts.capability)} for facts in map(_device, range(count))
        ],
    }


@contextmanager
def _stream_of(device: torch.device) -> Iterator[int]:
    """Makes the device current, and gives its current stream as launches take it."""
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _refuse_capture(device: torch.device) -> None:
    if _is_capturing(device):
        raise RuntimeError(
            "a weight's first call on a device waits for the device, which captures of CUDA graphs forbid: "
            "call it once with such an input before the capture"
        )


def _settle(device: torch.device) -> None:
    """Waits for what was just made, so that every stream may read it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class Shape(NamedTuple):
    """What the planner is asked about a call, beside the weight.

    Attributes:
        device: that it runs on.
        sizes: (N, C_out, H_out, W_out).
        input_pixels: H * W.
        groups: groups of channels.
        dtype: of a float x and result.
        binary: whether x is, or is made, signs.
        has_zeros: whether those may be 0.
        is_channels_last: whether x is.
        packed_input: whether x is words.
        float_output: whether floats are asked for.
        packed_output: whether words are.
        is_bare: whether nothing follows the sums but what rounding to the dtype does not change.
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
    is_bare: bool


class Candidate(NamedTuple):
    """A way to run a call, and the microseconds that it is predicted to take for the whole batch."""

    plan: str
    microseconds: float


class Planned(NamedTuple):
    """A convolution of settled sizes and options.

    Attributes:
        conv: what launches.
        shape: what the planner was asked.
        candidates: what it answered, the quickest first.
        plan: "sharing", "product" or "dense": what was taken.
        product_weight: the weight as the product's kernels read it; None for the other plans.
    """

    conv: Any
    shape: Shape
    candidates: list[Candidate]
    plan: str
    product_weight: Tensor | None


class Prepared:
    """A weight on a device as the kernels read it, and the convolutions with it, by their sizes and options."""

    def __init__(self, words: Tensor, codewords: Tensor, channels: int, count: int, unit: tuple[int, int, int]) -> None:
        self.words = words  # int32 (C_out, words): indices of tau bits
        self.codewords = codewords  # int16 (K,), bit t for tap t
        self.channels = channels  # of a group
        self.count = count  # K
        self.unit = unit
        self.convs: dict[tuple[object, ...], Planned] = {}
        self.products: dict[object, Tensor] = {}  # by how they are arranged
        self._dense: dict[torch.dtype, Tensor] = {}

    def dense(self, dtype: torch.dtype, decode: Callable[[], Tensor]) -> Tensor:
        """The decoded weight in a dtype, made by ``decode`` at the first call, without scale."""
        found = self._dense.get(dtype)
        if found is not None:
            return found
        _refuse_capture(self.words.device)
        with torch.inference_mode(False), torch.no_grad():
            weight = decode().to(dtype)
        _settle(self.words.device)
        self._dense[dtype] = weight
        return weight


class _Entry(NamedTuple):
    """A prepared weight, and what its tensors were when it was made."""

    weight: Prepared
    codebook: weakref.ref[Tensor]
    state: tuple[object, ...]
    copy: tuple[Tensor, Tensor] | None  # only of tensors that do not count their changes


_prepared = PerTensor[_Entry]()  # by packed_indices
_lock = threading.Lock()
# As in _native: a child never inherits it locked by a thread that it does not have.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def find_prepared(
    packed: Tensor, codebook: Tensor, units: int, codewords: int, unit: tuple[int, int, int]
) -> Prepared | None:
    """The prepared weight if there is one and its tensors have not changed since."""
    entry = _prepared.get(packed)
    if entry is None or entry.codebook() is not codebook:
        return None
    if entry.state != _native.state_of(packed, codebook, units, codewords, unit):
        return None
    if entry.copy is not None and not _is_capturing(packed.device):
        copies = zip((packed, codebook), entry.copy, strict=True)
        if not all(torch.equal(tensor, copy) for tensor, copy in copies):
            return None
    return entry.weight


def prepare(packed: Tensor, codebook: Tensor, units: int, codewords: int, unit: tuple[int, int, int]) -> Prepared:
    """The weight as the kernels read it: validated and brought into shape once, and again only if its tensors change.

    The first call waits for the device. So does every call with tensors made in inference mode, outside captures:
    torch does not count their changes, so they are compared. Changes through ``.data`` are not seen.

    Raises:
        TypeError: a packed tensor is not uint8.
        ValueError: the packed tensors do not fit the sizes, or an index is out of range.
        RuntimeError: the first call is inside the capture of a CUDA graph.
    """
    found = find_prepared(packed, codebook, units, codewords, unit)
    if found is not None:
        return found
    with _lock:
        found = find_prepared(packed, codebook, units, codewords, unit)
        if found is not None:
            return found
        _refuse_capture(packed.device)
        with torch.inference_mode(False), torch.no_grad():
            indices, bits = packed.cpu().contiguous(), codebook.cpu().contiguous()
            _native.check_weight(indices, bits, units, codewords, unit)
            words = torch.nn.functional.pad(indices, (0, -indices.shape[1] % _WORD_BYTES)).view(torch.int32)
            taps = (unpack_codebook(bits, codewords, unit) > 0).flatten(1).to(torch.int32)
            numbers = (taps << torch.arange(taps.shape[1])).sum(1).to(torch.int16)
            weight = Prepared(words.to(packed.device), numbers.to(packed.device), units * unit[0], codewords, unit)
            uncounted = packed.is_inference() or codebook.is_inference()
            copy = (packed.clone(), codebook.clone()) if uncounted else None
        state = _native.state_of(packed, codebook, units, codewords, unit)
        _prepared.put(packed, _Entry(weight, weakref.ref(codebook), state, copy))
        return weight


def candidates(
    shape: Shape, units: int, codewords: int, unit: tuple[int, int, int], routes: tuple[str, ...] = ROUTES
) -> list[Candidate]:
    """Every way to run a call, the quickest first.

    Args:
        shape: the call.
        units: of one output channel.
        codewords: size of the codebook.
        unit: one of those that kernels are compiled for.
        routes: the plans that have a kernel for it; "dense" always is there.
    """
    facts = device_of(shape.device)
    found = _native.cuda_candidates(
        binary=shape.binary,
        element=ELEMENTS.index(shape.dtype),
        unit=_native.UNITS[unit],
        codewords=codewords,
        units=units,
        outputs=shape.sizes[1] // shape.groups,
        groups=shape.groups,
        batch=shape.sizes[0],
        pixels=shape.sizes[2] * shape.sizes[3],
        input_pixels=shape.input_pixels,
        has_zeros=shape.has_zeros,
        is_channels_last=shape.is_channels_last,
        packed_input=shape.packed_input,
        float_output=shape.float_output,
        packed_output=shape.packed_output,
        is_bare=shape.is_bare,
        capability=facts.capability,
        multiprocessors=facts.multiprocessors,
        has_sharing="sharing" in routes,
        has_product="product" in routes,
    )
    return [Candidate(c["plan"], c["microseconds"]) for c in found]


def _choose(found: list[Candidate], device: torch.device) -> str:
    """The plan that ``SUBBIT_PLAN`` asks for where there is one, else the quickest."""
    wanted = _native.wanted_plan()
    plan = next((c.plan for c in found if c.plan == wanted), found[0].plan)
    if wanted != "dense":
        check_device(device)
    return plan


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
    capability = device_of(x.device).capability
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
    found_plans = candidates(shape, weight.channels // weight.unit[0], weight.count, weight.unit, routes)
    plan = _choose(found_plans, x.device)
    arranged = groups, activation_bits, capability
    product_weight = _product_weight(weight, conv, arranged) if plan == "product" else None
    made = Planned(conv, shape, found_plans, plan, product_weight)
    if len(weight.convs) >= _MOST_CONVS:
        weight.convs.clear()
    weight.convs[key] = made
    return made


def last_planned(weight: Prepared, sizes: tuple[int, int, int, int]) -> Planned | None:
    """What was planned last for an output of these sizes; None for sizes that are empty."""
    found = [made for made in weight.convs.values() if made.shape.sizes == sizes]
    return found[-1] if found else None


def _product_weight(weight: Prepared, conv: Any, key: object) -> Tensor:
    """The weight as the product's kernels read it; kept."""
    found = weight.products.get(key)
    if found is not None:
        return found
    device = weight.words.device
    _refuse_capture(device)
    with torch.inference_mode(False):
        made = torch.empty(conv.product_weight_bytes, dtype=torch.uint8, device=device)
    with _stream_of(device) as stream:
        conv.prepare_product(
            device=device.index,
            stream=stream,
            indices=weight.words.data_ptr(),
            codebook=weight.codewords.data_ptr(),
            weight=made.data_ptr(),
        )
    _settle(device)
    weight.products[key] = made
    return made


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
) -> bool:
    """Starts a convolution on the current stream of x's device, and returns without waiting for it.

    It computes what :func:`subbit_infer._native.conv2d` says. All tensors are on one CUDA device; the callers have
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

    Returns:
        Whether it was started: not where the plan is to convolve densely, which is the caller's to do.

    Raises:
        ValueError: sizes do not fit each other, or their product overflows.
        RuntimeError: kernels are not built for the device; a launch failed; or something that waits for the device
            comes first and a CUDA graph is being captured.
    """
    found = planned(
        weight, x, x_nonzero, y, residual, sizes, stride, padding, dilation, groups, activation_bits, sign_zero,
        activation, plus is not None, is_bare,
    )  # fmt: skip
    if found.plan == "dense":
        return False
    scratch_bytes = found.conv.scratch_bytes(found.plan, x.data_ptr(), _pointer(x_nonzero))
    scratch = torch.empty(scratch_bytes, dtype=torch.uint8, device=x.device) if scratch_bytes else None
    with _stream_of(x.device) as stream:
        found.conv(
            route=found.plan,
            device=x.device.index,
            stream=stream,
            x=x.data_ptr(),
            x_nonzero=_pointer(x_nonzero),
            indices=weight.words.data_ptr(),
            codebook=weight.codewords.data_ptr(),
            product_weight=_pointer(found.product_weight),
            scale=_pointer(scale),
            bias=_pointer(bias),
            residual=_pointer(residual),
            slope=_pointer(slope),
            shift=_pointer(shift),
            y=_pointer(y),
            y_plus=_pointer(plus),
            y_nonzero=_pointer(nonzero),
            pack_shift=_pointer(pack_shift),
            scratch=_pointer(scratch),
        )
    return True


_MOST_OF_CUDNN = 2**31 - 1  # elements of a tensor


def has_cudnn(x: Tensor, sizes: tuple[int, int, int, int]) -> bool:
    """Whether there is a cuDNN that can convolve x (N, C, H, W) into an output of these sizes."""
    fits = x.numel() <= _MOST_OF_CUDNN and math.prod(sizes) <= _MOST_OF_CUDNN
    return bool(fits and torch.backends.cudnn.is_available() and torch.backends.cudnn.enabled)


def dense_sums(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    *,
    allow_tf32: bool,
) -> Tensor:
    """``F.conv2d`` by cuDNN, with TF32 or without it whatever torch's flags say, and always with the same bits."""
    benchmark = torch.backends.cudnn.benchmark
    with torch.autocast("cuda", enabled=False):
        result: Tensor = torch.ops.aten.cudnn_convolution(
            x, weight, padding, stride, dilation, groups, benchmark, True, allow_tf32
        )
    return result


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
    with _stream_of(x.device) as stream:
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
