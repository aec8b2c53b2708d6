"""Tracks tensors that hold signs because of how they were computed, not by chance."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

_SIGNS = frozenset({"sign", "sgn", "ge", "gt", "le", "lt"})
_SUMS = frozenset({"add", "sub", "rsub"})
# Operators that only make numbers the program gives.
_CONSTANTS = frozenset({"full", "full_like", "new_full", "ones", "ones_like", "new_ones", "scalar_tensor", "fill"} | {
    "zeros", "zeros_like", "new_zeros", "zero"})  # fmt: skip
# Operators that choose among elements, beside the views and what torch tags as pointwise.
_CHOICES = frozenset({"_to_copy", "_unsafe_view", "cat", "clone", "constant_pad_nd", "copy", "index", "index_put"} | {
    "max_pool2d", "max_pool2d_with_indices", "stack"})  # fmt: skip


class _Kind(Enum):
    SIGN = "computed from signs or comparisons"
    CONSTANT = "computed from numbers of the program alone"


class Signs(TorchDispatchMode):
    """While it is entered, marks what comes from signs: elementwise, by choosing elements, or by moving them.

    A sum is marked where one of its terms is, since training code writes a sign as ``(sign(x) - t) + t``; everything
    else where all operands are marked or constant. So a marked tensor need not hold signs: look at its values too.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kinds = WeakTensorKeyDictionary()

    def __contains__(self, tensor: Tensor) -> bool:
        return self._kinds.get(tensor) is _Kind.SIGN

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Runs the operator and marks what it returns."""
        kwargs = kwargs or {}
        kind = self._kind(func, [*_tensors(args), *_tensors(tuple(kwargs.values()))])
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            if kind is None:
                self._kinds.pop(tensor, None)
            else:
                self._kinds[tensor] = kind
        return result

    def _kind(self, func: Any, operands: list[Tensor]) -> _Kind | None:
        name = func.overloadpacket.__name__.removesuffix("_")
        if name in _SIGNS:
            return _Kind.SIGN
        if name in _CONSTANTS:
            return _Kind.CONSTANT
        if not (func.is_view or torch.Tag.pointwise in func.tags or name in _CHOICES):
            return None
        if name == "copy":  # what was there before is gone
            operands = operands[1:]
        kinds = {self._kinds.get(t, _Kind.CONSTANT if t.dim() == 0 else None) for t in operands}
        if None in kinds and not (name in _SUMS and _Kind.SIGN in kinds):
            return None
        return _Kind.SIGN if _Kind.SIGN in kinds else _Kind.CONSTANT


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
