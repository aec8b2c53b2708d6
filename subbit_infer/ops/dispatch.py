"""When an operator may be called without torch's dispatcher.

The dispatcher costs more than a small layer does: 9 us of 22 in inference mode, 15 of 29 under no_grad
(benchmarks/NOTES.md). It is needed only when something other than the kernel is to see the call. Each condition has
a test (tests/test_dispatch.py).
"""

from __future__ import annotations

import torch
from torch import Tensor


def nothing_watches() -> bool:
    """Whether no compiler, tracer, transform, mode, profiler or forward-mode gradient sees operators right now."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch.autograd.profiler._is_profiler_enabled
        or torch.autograd.forward_ad._current_level >= 0
    )


def are_plain(*tensors: Tensor | None) -> bool:
    """Whether all are ordinary tensors on CPUs or CUDA devices, no subclasses or negated views, without gradients."""
    grad = torch.is_grad_enabled()
    for t in tensors:
        if t is None:
            continue
        if type(t) is not Tensor or not (t.is_cpu or t.is_cuda) or t.layout is not torch.strided or t.is_neg():
            return False
        if grad and t.requires_grad:
            return False
    return True
