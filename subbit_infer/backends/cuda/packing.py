"""Packing binary activations on CUDA devices."""

from __future__ import annotations

import torch
from torch import Tensor

from subbit_infer.backends import native
from subbit_infer.backends.cuda import device as devices
from subbit_infer.backends.cuda import runtime
from subbit_infer.backends.cuda.planner import ELEMENTS
from subbit_infer.backends.executable import check_memory
from subbit_infer.core.activations import pack_signs, word_count


def pack(x: Tensor, shift: Tensor | None, sign_zero: int) -> tuple[Tensor, Tensor | None]:
    """The signs of x + shift as words, ``plus`` and ``nonzero``, on the current stream of x's device.

    By the kernel where one is built and ``SUBBIT_PLAN`` does not forbid it, else by torch.

    Args:
        x: float32, float16 or bfloat16 (N, C, H, W) of any strides.
        shift: (C,) floats, or None.
        sign_zero: 1 for zeros that count as +1, and no ``nonzero``.

    Raises:
        ValueError: a tensor's storage was resized to 0.
        RuntimeError: kernels are not built for the device, or the launch failed.
    """
    check_memory("x", x)
    check_memory("shift", shift)
    if not runtime.is_built() or native.wanted_plan() == "dense" or x.numel() == 0:
        return pack_signs(x, shift, sign_zero)
    runtime.check_device(x.device)
    shift = None if shift is None else shift.to(torch.float32).contiguous()
    batch, channels, height, width = x.shape
    plus = torch.empty(batch, height, width, word_count(channels), dtype=torch.int64, device=x.device)
    nonzero = None if sign_zero else torch.empty_like(plus)
    with devices.stream_of(x.device) as stream:
        runtime.module().pack(
            device=x.device.index,
            stream=stream,
            x=x.data_ptr(),
            element=ELEMENTS.index(x.dtype),
            shape=x.shape,
            strides=x.stride(),
            shift=0 if shift is None else shift.data_ptr(),
            plus=plus.data_ptr(),
            nonzero=0 if nonzero is None else nonzero.data_ptr(),
        )
    return plus, nonzero
