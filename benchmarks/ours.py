"""The contenders of this package, for one layer or a whole network."""

from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import subbit_infer
from layers import Problem
from results import A1, A1_PACKED, A32
from subbit_infer import _native, conv, models
from timing import Contender

NO_PACKED = "packed activations: subbit_infer has no PackedActivations"


def a32(problem: Problem) -> Contender:
    """Float activations."""
    x, weight, stride, padding = problem.x, problem.weight, problem.layer.stride, problem.layer.padding
    return Contender(A32, lambda: conv(x, weight, stride=stride, padding=padding), problem.expected_a32)


def a1(problem: Problem) -> Contender:
    """Binary activations, floats in and out; takes the signs itself."""
    x, weight, stride, padding = problem.x, problem.weight, problem.layer.stride, problem.layer.padding
    return Contender(
        A1, lambda: conv(x, weight, stride=stride, padding=padding, activation_bits=1), problem.expected_a1
    )


def can_pack() -> bool:
    """Whether this version passes packed signs from layer to layer."""
    return hasattr(subbit_infer, "PackedActivations")


def a1_packed(problem: Problem) -> Contender:
    """Binary activations, packed signs in and out: one bit each, as 1-bit engines have them, so 0 counts as +1."""
    pack = subbit_infer.pack  # type: ignore[attr-defined, unused-ignore]  # not in every version: see can_pack
    x, weight = pack(problem.x, sign_zero=1), problem.weight
    options: dict[str, Any] = {"stride": problem.layer.stride, "padding": problem.layer.padding, "activation_bits": 1}
    options |= {"output": "packed", "pack_sign_zero": 1}
    return Contender(
        A1_PACKED,
        lambda: conv(x, weight, **options),
        torch.where(problem.expected_a1 >= 0, 1.0, -1.0),
        as_tensor=lambda packed: packed.unpack(),
    )


def all_of(problem: Problem) -> list[Contender]:
    """Each of the above that this version has."""
    return [a32(problem), a1(problem)] + ([a1_packed(problem)] if can_pack() else [])


def a32_network(dense: nn.Module, images: Tensor) -> Contender:
    """A whole network of float activations, fused, against the dense one."""
    fused = models.fuse(models.to_subbit(dense))
    return Contender(A32, lambda: fused(images), dense(images), bound=1e-4)


def a1_network(name: str, dense: nn.Module, images: Tensor) -> Contender:
    """A whole network of binary activations, fused, against the same with every sub-bit layer by the reference.

    Those have the same bits. The dense network's results may be anything else, as soon as a single activation is within
    rounding of 0: its sign flips, and random weights blow that up. That fused and dense networks are the same where
    nothing is rounded is what tests/test_models.py shows.
    """
    fused = models.fuse(models.to_subbit(dense))
    with mock.patch.dict(_native.UNITS, clear=True):  # no unit has compiled kernels
        expected = fused(images)
    return Contender(name, lambda: fused(images), expected)
