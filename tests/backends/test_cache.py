"""What is kept of a tensor goes with it, and never to another."""

from __future__ import annotations

import gc

import torch

from subbit_infer.backends.cache import PerTensor


def test_values_belong_to_one_tensor():
    cache = PerTensor[str]()
    a, b = torch.zeros(2), torch.zeros(2)
    cache.put(a, "a")
    assert (cache.get(a), cache.get(b), cache.get(a.view(2))) == ("a", None, None)
    cache.put(a, "again")
    assert cache.get(a) == "again"


def test_values_die_with_their_tensors():
    cache = PerTensor[str]()
    for i in range(100):  # ids are used again
        tensor = torch.zeros(2)
        assert cache.get(tensor) is None
        cache.put(tensor, str(i))
        cache.put(tensor, str(i))
        assert cache.get(tensor) == str(i)
        del tensor
    gc.collect()
    assert cache._entries == {}
