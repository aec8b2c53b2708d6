"""The contenders of this package, for one layer or a whole network."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers import Problem
from results import A1, A1_PACKED, A32
from subbit_infer import conv, convert, pack
from subbit_infer.backends import cpu, native
from subbit_infer.backends.executable import addresses
from subbit_infer.core.conv_args import ConvArgs, Outputs
from timing import Contender


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


def a1_packed(problem: Problem) -> Contender:
    """Binary activations, packed signs in and out: one bit each, as 1-bit engines have them, so 0 counts as +1."""
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
    """Each of the above."""
    return [a32(problem), a1(problem), a1_packed(problem)]


def a32_network(dense: nn.Module, images: Tensor) -> Contender:
    """A whole network of float activations, folded, against the dense one."""
    folded = convert(dense, images, fold=True).model
    return Contender(A32, lambda: folded(images), dense(images), bound=1e-4)


def a1_network(name: str, dense: nn.Module, images: Tensor) -> Contender:
    """A whole network of binary activations, folded, against the same with every sub-bit layer by the reference.

    Those have the same bits. The dense network's results may be anything else, as soon as a single activation is within
    rounding of 0: its sign flips, and random weights blow that up. That folded and dense networks are the same where
    nothing is rounded is what tests/models/test_models.py shows.
    """
    folded = convert(dense, images, fold=True).model
    with mock.patch.dict(native.UNITS, clear=True):  # no unit has compiled kernels
        expected = folded(images)
    return Contender(name, lambda: folded(images), expected)


RAW_US = 100.0  # of a run that is timed, about: single calls of microseconds a clock cannot tell apart


def plans(problem: Problem, activation_bits: int) -> tuple[list[Contender], dict[str, Any]]:
    """Every way that the planner could run a layer, called below Python's checks; dense as torch's convolution.

    Returns:
        The contenders by plan, and what they are about: which was chosen, the calls of a run and the predictions
        (microseconds of a call) by plan.
    """
    layer, weight = problem.layer, problem.weight
    is_binary = activation_bits == 1
    expected = problem.expected_a1 if is_binary else problem.expected_a32
    prepared = cpu.prepare(weight.packed_indices, weight.packed_codebook, weight.units, weight.codewords, weight.unit)
    found = native.candidates(
        is_binary, native.UNITS[weight.unit], weight.codewords, weight.units, layer.c_out, 1, layer.stride,
        expected.shape[2] * expected.shape[3], layer.side**2, native.active_level(),
    )  # fmt: skip
    predicted = {one["plan"]: layer.batch * one["nanoseconds"] / 1e3 for one in found}
    number = {plan: max(1, round(RAW_US / microseconds)) for plan, microseconds in predicted.items()}
    contenders = []
    for plan in predicted:
        call = _dense(problem, is_binary) if plan == "dense" else _raw(problem, prepared, plan, is_binary, expected)
        contenders.append(Contender(plan, _repeated(call, number[plan]), expected))
    facts = {"activation_bits": activation_bits, "chosen": found[0]["plan"], "calls": number, "predicted_us": predicted}
    return contenders, facts


def _raw(problem: Problem, weight: cpu.Prepared, plan: str, is_binary: bool, expected: Tensor) -> Callable[[], Tensor]:
    x, scale = problem.x, problem.weight.scale
    y = torch.full_like(expected, float("nan"))
    args = ConvArgs.of_weight(
        x,
        problem.weight,
        stride=(problem.layer.stride,) * 2,
        padding=(problem.layer.padding,) * 2,
        activation_bits=1 if is_binary else 32,
    )
    planned = cpu.planned(weight, args, args.output_layout(args.check()), plan=plan)
    given = addresses(args, Outputs(y, None, None))
    kept = y, x, scale  # whose addresses these are

    def call() -> Tensor:
        planned(*given)
        return kept[0]

    return call


def _dense(problem: Problem, is_binary: bool) -> Callable[[], Tensor]:
    x, dense, stride, padding = problem.x, problem.dense, problem.layer.stride, problem.layer.padding
    if is_binary:
        return lambda: F.conv2d(x.sign(), dense, None, stride, padding)
    return lambda: F.conv2d(x, dense, None, stride, padding)


def _repeated(call: Callable[[], Tensor], number: int) -> Callable[[], Tensor]:
    def run() -> Tensor:
        for _ in range(number - 1):
            call()
        return call()

    return run
