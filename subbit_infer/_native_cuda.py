"""The one file that touches the compiled CUDA module: says why there is none, prepares weights, plans and launches.

Nothing here waits for the device but what is done once for a weight: its first call on a device, and its first call by
a plan that reads it in another form. So captures of CUDA graphs need one call before them, as torch's own layers do.
"""

from __future__ import annotations

import functools
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

_WORD_BYTES = 4  # rows of indices are whole words on the device
_MOST_CONVS = 32  # sizes and options that one weight is kept planned for


def reason() -> str | None:
    """Why no CUDA kernels can run in this process, in one line; None where they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if _C_cuda is None:
        return _missing
    return None if torch.cuda.is_available() else "torch finds no CUDA device and driver that it can use"


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


def _refuse_capture(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a weight's first call on a device waits for the device, which captures of CUDA graphs forbid: "
            "call it once with such an input before the capture"
        )


def _settle(device: torch.device) -> None:
    """Waits for what was just made, so that every stream may read it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class Planned(NamedTuple):
    """A convolution of settled sizes and options.

    Attributes:
        conv: what launches; None where the sizes are empty or the plan is dense.
        plan: "sharing", "product" or "dense".
        scratch_bytes: that a launch needs.
        product_weight: the weight as the product's kernels read it; None for the other plans.
    """

    conv: Any
    plan: str
    scratch_bytes: int
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


_prepared = PerTensor[_Entry]()  # by packed_indices
_lock = threading.Lock()
# As in _native: a child never inherits it locked by a thread that it does not have.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def find_prepared(
    packed: Tensor, codebook: Tensor, units: int, codewords: int, unit: tuple[int, int, int]
) -> Prepared | None:
    """The prepared weight if there is one and torch has counted no change of its tensors since."""
    entry = _prepared.get(packed)
    if entry is None or entry.codebook() is not codebook:
        return None
    return entry.weight if entry.state == _native.state_of(packed, codebook, units, codewords, unit) else None


def prepare(packed: Tensor, codebook: Tensor, units: int, codewords: int, unit: tuple[int, int, int]) -> Prepared:
    """The weight as the kernels read it: validated and brought into shape once, and again only if its tensors change.

    The first call waits for the device. Changes that torch does not count (through ``.data``, or of tensors made in
    inference mode: comparing would wait for the device at every call) are not seen: pass a new tensor.

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
            weight = Prepared(
                words.to(packed.device), numbers.to(packed.device), units * unit[0], codewords, unit
            )
        state = _native.state_of(packed, codebook, units, codewords, unit)
        _prepared.put(packed, _Entry(weight, weakref.ref(codebook), state))
        return weight


def candidates(
    x: Tensor,
    weight: Prepared,
    sizes: tuple[int, int, int, int],
    groups: int,
    activation_bits: int,
    *,
    dtype: torch.dtype,
    float_output: bool,
    packed_output: bool,
    is_bare: bool,
    routes: tuple[str, ...] = ROUTES,
) -> list[tuple[str, float]]:
    """Every plan and its predicted microseconds for the whole batch, the quickest first.

    Args:
        x: floats or words, as :func:`conv2d` takes it; only sizes and device are read.
        weight: the prepared weight.
        sizes: (N, C_out, H_out, W_out).
        groups: groups of channels.
        activation_bits: 32 or 1.
        dtype: of a float output.
        float_output: whether there is one.
        packed_output: whether there are words.
        is_bare: whether nothing but a relu or hardtanh follows the sums.
        routes: those that have a kernel for it.
    """
    packed = x.dtype == torch.int64
    height, width = x.shape[1:3] if packed else x.shape[2:]
    device = device_of(x.device)
    found = _native.cuda_candidates(
        binary=activation_bits == 1,
        element=ELEMENTS.index(dtype),
        unit=_native.UNITS[weight.unit],
        codewords=weight.count,
        units=weight.channels // weight.unit[0],
        outputs=sizes[1] // groups,
        groups=groups,
        batch=sizes[0],
        pixels=sizes[2] * sizes[3],
        input_pixels=height * width,
        packed_input=packed,
        float_output=float_output,
        packed_output=packed_output,
        is_bare=is_bare,
        capability=device.capability,
        multiprocessors=device.multiprocessors,
        has_sharing="sharing" in routes,
        has_product="product" in routes,
    )
    return [(c["plan"], c["microseconds"]) for c in found]
