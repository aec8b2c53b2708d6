"""The contenders of this package for one layer."""

from typing import Any

import torch

import subbit_infer
from layers import Problem
from results import A1, A1_PACKED, A32
from subbit_infer import conv
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
