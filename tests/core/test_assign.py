"""Assignment of units to codewords and back, against brute force."""

import itertools
import re
from typing import Any

import pytest
import torch
from by_hand import PAPER_UNITS, UNITS, nearest_by_hand, weight_for
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from subbit_infer.core import codebook
from subbit_infer.core.codebook import UNIT_1X1, UNIT_3X3, Unit

# ---- units ----


def test_units_of_is_a_view_of_consecutive_channels() -> None:
    weight = torch.arange(2 * 16.0).reshape(2, 16, 1, 1)
    units = codebook.units_of(weight, UNIT_1X1)
    assert units.shape == (2, 2, 8, 1, 1)
    assert units[1, 1].flatten().tolist() == list(range(24, 32))
    assert units.data_ptr() == weight.data_ptr()
    kernels = torch.arange(2 * 3 * 9).reshape(2, 3, 3, 3)
    assert torch.equal(codebook.units_of(kernels, UNIT_3X3)[:, :, 0], kernels)


@pytest.mark.parametrize(
    ("weight", "unit", "error", "message"),
    [
        (torch.ones(2, 12, 1, 1), UNIT_1X1, ValueError, "in multiples of the unit's 8, got 12"),
        (torch.ones(2, 8, 3, 3), UNIT_1X1, ValueError, "weight must have the unit's kernel size (1, 1), got (3, 3)"),
        (torch.ones(2, 8, 3, 1), UNIT_3X3, ValueError, "weight must have the unit's kernel size (3, 3), got (3, 1)"),
        (torch.ones(8, 8), UNIT_1X1, ValueError, "weight must have shape (C_out, C_in, kh, kw), got (8, 8)"),
        (
            torch.ones(1, 1, 3, 3, dtype=torch.cfloat),
            UNIT_3X3,
            TypeError,
            "weight must have a floating or integer dtype",
        ),
        (None, UNIT_3X3, TypeError, "weight must be a tensor, got NoneType"),
    ],
)
def test_units_of_and_assign_refuse_bad_weights(weight: Any, unit: Unit, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        codebook.units_of(weight, unit)
    with pytest.raises(error, match=re.escape(message)):
        codebook.assign(weight, codebook.vanilla(2, unit, seed=0))


# ---- assign and decode ----


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("tau", [1, 3, 5])
def test_assign_finds_the_nearest_codeword(unit: Unit, tau: int) -> None:
    words = codebook.vanilla(min(tau, unit[0] * unit[1] * unit[2]), unit, seed=2)
    weight = weight_for(unit, 5, 3, seed=tau)
    indices = codebook.assign(weight, words)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, nearest_by_hand(weight, words))


@settings(max_examples=40, deadline=None)
@given(
    taps=st.lists(st.integers(-2, 2), min_size=36, max_size=36),
    size=st.integers(1, 12),
    seed=st.integers(0, 1000),
    chunk=st.integers(1, 6),
)
def test_assign_takes_the_first_of_equally_near_codewords(taps: list[int], size: int, seed: int, chunk: int) -> None:
    # Small integers make every distance exact, so the ties (which are many) are true ones.
    generator = torch.Generator().manual_seed(seed)
    words = codebook.full_set()[torch.randint(512, (size,), generator=generator)]  # repeats allowed
    weight = torch.tensor(taps, dtype=torch.float32).reshape(2, 2, 3, 3)
    assert torch.equal(codebook.assign(weight, words, chunk=chunk), nearest_by_hand(weight, words))


def test_assign_of_ties() -> None:
    weight = torch.zeros(1, 2, 3, 3)
    weight[0, 1, 1, 1] = -1
    words = codebook.full_set()[[511, 511, 0, 0]]
    assert codebook.assign(weight, words).tolist() == [[0, 2]]


def test_assign_to_a_full_set_gives_the_signs() -> None:
    weight = weight_for(UNIT_1X1, 16, 8, seed=9)
    indices = codebook.assign(weight, codebook.full_set(UNIT_1X1))
    assert torch.equal(codebook.decode(indices, codebook.full_set(UNIT_1X1)), weight.sign())


def test_assign_is_the_same_for_any_chunk() -> None:
    words = codebook.vanilla(6, seed=0)
    weight = weight_for(UNIT_3X3, 7, 11, seed=0)
    whole = codebook.assign(weight, words)
    for chunk in (1, 76, 77, 78, 10**9):
        assert torch.equal(codebook.assign(weight, words, chunk=chunk), whole)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        codebook.assign(weight, words, chunk=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int8])
def test_assign_takes_every_real_dtype(dtype: torch.dtype) -> None:
    words = codebook.vanilla(5, seed=8)
    weight = (weight_for(UNIT_3X3, 3, 4, seed=8) * 20).to(dtype)
    assert torch.equal(codebook.assign(weight, words.to(torch.int8)), nearest_by_hand(weight.float(), words))


def test_assign_takes_parameters_strided_and_empty_weights() -> None:
    words = codebook.vanilla(4, seed=0)
    weight = weight_for(UNIT_3X3, 6, 4, seed=3)
    expected = codebook.assign(weight, words)
    assert torch.equal(codebook.assign(torch.nn.Parameter(weight), words), expected)
    assert torch.equal(codebook.assign(weight.to(memory_format=torch.channels_last), words), expected)
    assert torch.equal(codebook.assign(weight[::2], words), expected[::2])
    assert codebook.assign(weight[:0], words).shape == (0, 4)


def test_assign_refuses_what_is_not_finite_in_float32() -> None:
    weight = torch.zeros(1, 2, 3, 3)
    weight[0, 1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match="weight must be finite, got nan first and 1 such values in all"):
        codebook.assign(weight, codebook.full_set()[:2])
    with pytest.raises(ValueError, match="weight must be finite, got -inf first"):
        codebook.assign(torch.full((1, 1, 3, 3), -1e60, dtype=torch.float64), codebook.full_set()[:2])


class LargestResult(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the bytes of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.bytes = max(self.bytes, result.nbytes)
        return result


def test_assign_of_a_large_layer_stays_small() -> None:
    words = codebook.vanilla(8, seed=0)
    weight = weight_for(UNIT_3X3, 512, 512, seed=0)
    with LargestResult() as largest:
        indices = codebook.assign(weight, words)
    # The dot products of all units would take 256 MiB, and the weight itself takes 9 MiB.
    assert weight.nbytes <= largest.bytes <= 32 * 2**20
    with LargestResult() as largest:
        codebook.assign(weight[:64], words, chunk=2**15)
    assert largest.bytes == 32 * 2**20
    # 2**18 units at 4096 a chunk: whole rows of 8 output channels, so the last is the end of the last chunk.
    for row in (0, 8, 511):
        assert torch.equal(indices[row], codebook.assign(weight[row : row + 1], words)[0])
    assert torch.equal(indices[511:, 500:], nearest_by_hand(weight[511:, 500:], words))


@pytest.mark.parametrize("unit", UNITS)
def test_decode_writes_the_codewords_out(unit: Unit) -> None:
    words = codebook.vanilla(min(3, unit[0] * unit[1] * unit[2]), unit, seed=6)
    indices = torch.randint(len(words), (4, 5), generator=torch.Generator().manual_seed(0))
    weight = codebook.decode(indices, words)
    assert weight.dtype == torch.float32
    assert weight.is_contiguous()
    assert weight.shape == (4, 5 * unit[0], *unit[1:])
    for row, column in itertools.product(range(4), range(5)):
        piece = weight[row, column * unit[0] : (column + 1) * unit[0]]
        assert torch.equal(piece, words[int(indices[row, column])])


def test_decode_takes_bytes_as_indices_and_no_mask() -> None:
    words = codebook.full_set()[:2]
    indices = torch.tensor([[0, 1], [1, 1]], dtype=torch.uint8)
    assert torch.equal(codebook.decode(indices, words), codebook.decode(indices.long(), words))
    assert codebook.decode(torch.empty(0, 3, dtype=torch.int64), words).shape == (0, 3, 3, 3)


@pytest.mark.parametrize("unit", PAPER_UNITS)
def test_assign_inverts_decode(unit: Unit) -> None:
    words = codebook.vanilla(5, unit, seed=4)
    indices = torch.randint(32, (6, 7), generator=torch.Generator().manual_seed(1))
    assert torch.equal(codebook.assign(codebook.decode(indices, words), words), indices)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (torch.tensor([[0, 1], [0, 4]]), ValueError, "indices must be 0 to 3, got 4 at [1, 1]"),
        (torch.tensor([[0, -1]]), ValueError, "indices must be 0 to 3, got -1 at [0, 1]"),
        (torch.tensor([0, 1]), ValueError, "indices must have shape (C_out, U), got (2,)"),
        (torch.ones(1, 1), TypeError, "indices must have an integer dtype, got torch.float32"),
        (torch.ones(1, 1, dtype=torch.bool), TypeError, "indices must have an integer dtype, got torch.bool"),
        ([[0]], TypeError, "indices must be a tensor, got list"),
    ],
)
def test_decode_refuses_bad_indices(indices: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        codebook.decode(indices, codebook.full_set()[:4])
