"""The only importers of compiled code: what prepares, plans and runs convolutions on each kind of device."""

from __future__ import annotations

import torch

from subbit_infer.backends import cpu, native
from subbit_infer.backends.executable import Backend

__all__ = ["backend_of"]


def backend_of(device: torch.device, unit: tuple[int, ...]) -> Backend | None:
    """What has kernels for units on a device; None where the definition is computed by torch instead.

    The backend of CUDA devices is imported by the first call with a tensor on one.
    """
    if unit not in native.UNITS:
        return None
    if device.type == "cpu":
        return cpu
    if device.type == "cuda":
        from subbit_infer.backends.cuda import convolution, runtime

        return convolution if runtime.is_built() else None
    return None
