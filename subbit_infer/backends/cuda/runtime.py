"""The one file that touches the compiled CUDA module: loads it, or says why there is none, and what it is built for."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from subbit_infer.backends.cuda import device as devices

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


def module() -> ModuleType:
    """The compiled module; there must be one."""
    assert _C_cuda is not None
    return _C_cuda


def unit_of(unit: tuple[int, int, int]) -> Any:
    """A unit as the module takes it."""
    units = module().Unit
    return {(1, 3, 3): units.k3x3, (8, 1, 1): units.k8x1x1}[unit]


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
    *others, last = (f"sm_{number}" for number in module().architectures)
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
    facts = devices.device_of(device)
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
    found = map(devices.facts_of, range(count))
    return {
        "reason": reason(),
        "torch": torch.version.cuda,
        "built": _C_cuda is not None,
        "cuda": None if _C_cuda is None else f"{_C_cuda.version // 1000}.{_C_cuda.version % 1000 // 10}",
        "architectures": [] if _C_cuda is None else list(_C_cuda.architectures),
        "devices": [{**facts._asdict(), "supported": is_built_for(facts.capability)} for facts in found],
    }
