"""What is kept of a tensor for as long as it lives."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class PerTensor(Generic[Value]):
    """A value a tensor, looked up by identity; 1 us faster than torch's WeakTensorKeyDictionary.

    Both operations are one step of a dict, so threads need no lock.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], Value]] = {}

    def get(self, tensor: Tensor) -> Value | None:
        """What was put there for this very tensor."""
        entry = self._entries.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def put(self, tensor: Tensor, value: Value) -> None:
        """Keeps a value until the tensor dies."""
        entries, key = self._entries, id(tensor)

        def forget(reference: weakref.ref[Tensor]) -> None:
            entry = entries.get(key)
            if entry is not None and entry[0] is reference:  # else the id is another tensor's by now
                del entries[key]

        entries[key] = weakref.ref(tensor, forget), value


class _Entry(NamedTuple, Generic[Value]):
    """A prepared weight, and what its tensors were when it was made."""

    weight: Value
    codebook: weakref.ref[Tensor]
    state: tuple[object, ...]
    copy: tuple[Tensor, Tensor] | None  # only of tensors that do not count their changes


_lock = threading.Lock()
# Held across fork(), so that a child never inherits it locked by a thread that it does not have.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class WeightCache(Generic[Value]):
    """Weights as kernels read them, by the packed tensors that they were made of; prepared again when those change.

    Args:
        is_same: whether a tensor still is what its copy says; asked about tensors made in inference mode, whose
            changes torch does not count.
    """

    def __init__(self, is_same: Callable[[Tensor, Tensor], bool]) -> None:
        self._entries = PerTensor[_Entry[Value]]()  # by packed_indices
        self._is_same = is_same

    def find(
        self, packed: Tensor, codebook: Tensor, units: int, codewords: int, unit: tuple[int, int, int]
    ) -> Value | None:
        """The prepared weight if there is one and its tensors have not changed since.

        A part of every call, and so without a function of its own for what the tensors are now.
        """
        entry = self._entries.get(packed)
        if entry is None or entry.codebook() is not codebook:
            return None
        state = (
            packed.data_ptr(), packed.shape, packed.stride(), -1 if packed.is_inference() else packed._version,
            codebook.data_ptr(), codebook.stride(), -1 if codebook.is_inference() else codebook._version,
            units, codewords, unit,
        )  # fmt: skip
        if entry.state != state:
            return None
        copy = entry.copy
        if copy is not None and not (self._is_same(packed, copy[0]) and self._is_same(codebook, copy[1])):
            return None
        return entry.weight

    def prepare(
        self,
        packed: Tensor,
        codebook: Tensor,
        units: int,
        codewords: int,
        unit: tuple[int, int, int],
        make: Callable[[], Value],
    ) -> Value:
        """The prepared weight, made by ``make`` where there is none that is current; one thread makes it."""
        found = self.find(packed, codebook, units, codewords, unit)
        if found is not None:
            return found
        with _lock:
            found = self.find(packed, codebook, units, codewords, unit)
            if found is not None:
                return found
            made = make()
            with torch.inference_mode(False), torch.no_grad():
                uncounted = packed.is_inference() or codebook.is_inference()
                copy = (packed.clone(), codebook.clone()) if uncounted else None
            state = (
                packed.data_ptr(), packed.shape, packed.stride(), version_of(packed),
                codebook.data_ptr(), codebook.stride(), version_of(codebook),
                units, codewords, unit,
            )  # fmt: skip
            self._entries.put(packed, _Entry(made, weakref.ref(codebook), state, copy))
            return made


def version_of(tensor: Tensor) -> int:
    """Torch's count of a tensor's changes in place; -1 where it keeps none."""
    return -1 if tensor.is_inference() else tensor._version
