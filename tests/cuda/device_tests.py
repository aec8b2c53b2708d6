"""What tests on a device share: the device, what is run on it, and how results are compared."""

from __future__ import annotations

import pytest
import torch
from helpers import UNIT_1X1, expected_conv, integers, random_weight

from subbit_infer import PackedWeight, conv
from subbit_infer.backends.cuda import runtime
from subbit_infer.backends.cuda import weight as cuda_weight

REASON = runtime.reason()

DEVICE = torch.device("cuda", 0)
PLANS = ("sharing", "product", "sparse", "dense")
MOST_SPARSE = 8  # codewords, of 3x3 units, with float activations
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAN, INF = float("nan"), float("inf")


def on_device(*tensors):
    return tuple(None if t is None else t.to(DEVICE) for t in tensors)


def count_for(plan: str, codewords: int = 32) -> int:
    """So many codewords, or as many as the plan has kernels for."""
    return min(codewords, MOST_SPARSE) if plan == "sparse" else codewords


def weight_of(indices, codebook):
    return PackedWeight.from_indices(indices, codebook).to(DEVICE)


def run(x, indices, codebook, **options):
    """The convolution on the device; what it gives, on the CPU."""
    moved = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    result = conv(x.to(DEVICE), weight_of(indices, codebook), **moved)
    torch.cuda.synchronize()
    return result.to("cpu")


def plan_that_ran(weight: PackedWeight) -> set[str]:
    prepared = cuda_weight.find_prepared(
        weight.packed_indices, weight.packed_codebook, weight.units, weight.codewords, weight.unit
    )
    assert prepared is not None
    return {planned.plan for planned in prepared.convs.values()}


def assert_right(y: torch.Tensor, expected: torch.Tensor, plan: str, activation_bits: int) -> None:
    """The same bits; cuDNN, some of whose algorithms are not exact on integers, may be off by 10^-5 of the most."""
    if plan != "dense" or activation_bits == 1:
        assert_same(y, expected)
    else:
        most = expected.abs().max().item()
        torch.testing.assert_close(y.double(), expected.to(y.dtype).double(), rtol=2e-2, atol=1e-5 * most + 1e-9)


def assert_same(y: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit by bit, and the first element that differs."""
    expected = expected.to(y.dtype)
    if not torch.equal(y, expected):
        wrong = (y != expected).nonzero()
        at = tuple(wrong[0].tolist())
        pytest.fail(
            f"{len(wrong)} of {y.numel()} elements differ, first at {at}: {y[at].item()}, not {expected[at].item()}"
        )


def check(
    plan, activation_bits, unit, out_channels, in_channels, codewords, size, *, batch=1, groups=1, seed=0, **given
):
    """A problem of small integers, whose sums are exact in float32."""
    options = given | {"activation_bits": activation_bits, "groups": groups}
    dtype = options.pop("dtype", torch.float32)
    if plan == "sparse" and unit == UNIT_1X1:
        plan = "dense"  # or any other
    count = count_for(plan, codewords)
    indices, codebook = random_weight(unit, out_channels, in_channels // groups // unit[0], count, seed)
    x = integers(batch, in_channels, *size, seed=seed)
    expected = expected_conv(x, indices, codebook, **options)
    assert_right(run(x.to(dtype), indices, codebook, **options), expected, plan, activation_bits)
