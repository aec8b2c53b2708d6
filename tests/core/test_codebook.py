"""Units, codebooks and the assignment, against brute force written out in Python or float64."""

import itertools
import re
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from subbit_infer.core import codebook
from subbit_infer.core.codebook import UNIT_1X1, UNIT_3X3, Unit

UNITS = [UNIT_3X3, UNIT_1X1, (2, 1, 2), (1, 1, 1)]
PAPER_UNITS = [UNIT_3X3, UNIT_1X1]


def number_by_hand(codeword: Tensor) -> int:
    return int("".join("1" if tap > 0 else "0" for tap in codeword.flatten().tolist()), 2)


def nearest_by_hand(weight: Tensor, words: Tensor) -> Tensor:
    """The index of the first codeword of least squared distance, in float64, unit by unit from the dense weight."""
    group = words.shape[1]
    rows = []
    for kernel in weight.double():
        units = [kernel[start : start + group] for start in range(0, kernel.shape[0], group)]
        distances = [[float((word - unit).square().sum()) for word in words.double()] for unit in units]
        rows.append([row.index(min(row)) for row in distances])
    return torch.tensor(rows)


def weight_for(unit: Unit, out_channels: int, units: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out_channels, units * unit[0], *unit[1:], generator=generator)


# ---- the full set and its numbers ----


@pytest.mark.parametrize("unit", UNITS)
def test_full_set_counts_up_in_binary_in_c_order(unit: Unit) -> None:
    taps = unit[0] * unit[1] * unit[2]
    expected = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=taps)))
    words = codebook.full_set(unit)
    assert words.dtype == torch.float32
    assert words.shape == (2**taps, *unit)
    assert torch.equal(words.flatten(1), expected)


def test_full_set_reads_the_first_tap_as_the_most_significant_bit() -> None:
    words = codebook.full_set()
    assert words[256, 0].tolist() == [[1, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert words[0b000_100_001, 0].tolist() == [[-1, -1, -1], [1, -1, -1], [-1, -1, 1]]
    assert codebook.full_set(UNIT_1X1)[0b0100_0000].flatten().tolist() == [-1, 1, -1, -1, -1, -1, -1, -1]


@pytest.mark.parametrize("unit", UNITS)
def test_numbers_inverts_full_set(unit: Unit) -> None:
    words = codebook.full_set(unit)
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0))
    assert torch.equal(codebook.numbers(words[order]), order)


def test_full_set_and_numbers_take_sixteen_taps() -> None:
    words = codebook.full_set((1, 4, 4))
    assert words.shape == (65536, 1, 4, 4)
    assert codebook.numbers(words[[0, 32769, 65535]]).tolist() == [0, 32769, 65535]


def test_numbers_takes_integers_and_no_codewords() -> None:
    assert codebook.numbers(codebook.full_set().to(torch.int8))[300].item() == 300
    assert codebook.numbers(torch.empty(0, 1, 3, 3)).shape == (0,)


@pytest.mark.parametrize(
    ("unit", "error", "message"),
    [
        ((1, 17, 1), ValueError, "unit must have at most 16 taps, got 17 in (1, 17, 1)"),
        ((1, 0, 3), ValueError, "unit must have sides of at least 1, got (1, 0, 3)"),
        ((-1, -3, 3), ValueError, "unit must have sides of at least 1, got (-1, -3, 3)"),
        ((3, 3), TypeError, "unit must be three integers (g, kh, kw), got (3, 3)"),
        ((1, 3.0, 3), TypeError, "unit must be three integers (g, kh, kw), got (1, 3.0, 3)"),
    ],
)
def test_full_set_refuses_a_bad_unit(unit: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        codebook.full_set(unit)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (torch.ones(2, 3, 3), ValueError, "codewords must have shape (K, g, kh, kw), got (2, 3, 3)"),
        (torch.ones(2, 1, 1, 17), ValueError, "unit must have at most 16 taps, got 17"),
        (torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1), ValueError, "got 2.0 at [0, 1, 0, 0]"),
        (torch.ones(1, 1, 3, 3, dtype=torch.bool), TypeError, "codewords must have a floating or integer dtype"),
        ([[1]], TypeError, "codewords must be a tensor, got list"),
    ],
)
def test_numbers_refuses_what_is_no_codeword(words: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        codebook.numbers(words)


def test_tau_of() -> None:
    sizes = [1, 2, 3, 4, 5, 8, 9, 31, 32, 33, 255, 256]
    assert [codebook.tau_of(size) for size in sizes] == [1, 1, 2, 2, 3, 3, 4, 5, 5, 6, 8, 8]
    with pytest.raises(ValueError, match="codewords must be at least 1, got 0"):
        codebook.tau_of(0)


# ---- the ways to a codebook ----


@pytest.mark.parametrize("unit", UNITS)
def test_vanilla_draws_without_repeats(unit: Unit) -> None:
    most = min(8, unit[0] * unit[1] * unit[2])
    for tau in range(1, most + 1):
        words = codebook.vanilla(tau, unit, seed=tau)
        assert words.shape == (2**tau, *unit)
        found = codebook.numbers(words)
        assert (found.diff() > 0).all()  # sorted and without repeats


def test_vanilla_with_a_seed_repeats_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first = codebook.vanilla(5, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(codebook.vanilla(5, seed=3), first)
    assert not torch.equal(codebook.vanilla(5, seed=4), first)


def test_vanilla_draws_from_the_generator_or_else_from_the_global_one() -> None:
    generator = torch.Generator().manual_seed(11)
    first, second = codebook.vanilla(4, generator=generator), codebook.vanilla(4, generator=generator)
    assert not torch.equal(first, second)
    assert torch.equal(codebook.vanilla(4, generator=torch.Generator().manual_seed(11)), first)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        assert torch.equal(codebook.vanilla(4), first)
        assert torch.equal(codebook.vanilla(4), second)


def test_vanilla_reaches_every_codeword() -> None:
    draws = torch.cat([codebook.numbers(codebook.vanilla(7, seed=seed)) for seed in range(64)])
    counts = torch.bincount(draws, minlength=512)
    # 64 draws at 1/4 each: 16 with a deviation of 3.5; five deviations hold for all 512 counts.
    assert counts.shape == (512,)
    assert counts.min() > 0
    assert counts.max() < 34


def test_vanilla_refuses_seed_and_generator_together() -> None:
    with pytest.raises(ValueError, match="seed and generator exclude each other, got seed 1 and a generator"):
        codebook.vanilla(3, seed=1, generator=torch.Generator())


def test_equal_intervals() -> None:
    assert codebook.numbers(codebook.equal_intervals(3)).tolist() == [0, 64, 128, 192, 256, 320, 384, 448]
    assert codebook.numbers(codebook.equal_intervals(8)).tolist() == list(range(0, 512, 2))
    assert codebook.numbers(codebook.equal_intervals(5, UNIT_1X1)).tolist() == list(range(0, 256, 8))
    assert torch.equal(codebook.equal_intervals(8, UNIT_1X1), codebook.full_set(UNIT_1X1))


@pytest.mark.parametrize(
    ("tau", "unit", "error", "message"),
    [
        (0, UNIT_3X3, ValueError, "tau must be 1 to 8 for a unit (1, 3, 3), got 0"),
        (9, UNIT_3X3, ValueError, "tau must be 1 to 8 for a unit (1, 3, 3), got 9"),
        (9, UNIT_1X1, ValueError, "tau must be 1 to 8 for a unit (8, 1, 1), got 9"),
        (5, (2, 1, 2), ValueError, "tau must be 1 to 4 for a unit (2, 1, 2), got 5"),
        (2.0, UNIT_3X3, TypeError, "tau must be an integer, got float"),
        (True, UNIT_3X3, TypeError, "tau must be an integer, got bool"),
    ],
)
def test_tau_is_checked_everywhere(tau: Any, unit: Unit, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        codebook.vanilla(tau, unit, seed=0)
    with pytest.raises(error, match=re.escape(message)):
        codebook.equal_intervals(tau, unit)
    with pytest.raises(error, match=re.escape(message)):
        codebook.most_frequent(weight_for(unit, 2, 2, seed=0), tau, unit)


@pytest.mark.parametrize("unit", PAPER_UNITS)
def test_most_frequent_matches_a_count_by_hand(unit: Unit) -> None:
    generator = torch.Generator().manual_seed(5)
    # Few distinct units at uneven frequencies, with ties among them.
    words = codebook.vanilla(6, unit, seed=1)
    picks = (torch.rand(16, 24, generator=generator).square() * 64).long()
    weight = codebook.decode(picks, words) * torch.rand(16, 24 * unit[0], *unit[1:], generator=generator)
    counts = Counter(number_by_hand(words[pick]) for pick in picks.flatten().tolist())
    assert len(set(counts.values())) < len(counts)
    expected = sorted(counts, key=lambda number: (-counts[number], number))
    for tau in (1, 3, 5):
        assert codebook.numbers(codebook.most_frequent(weight, tau)).tolist() == expected[: 2**tau]


def test_most_frequent_breaks_ties_and_fills_up_by_lower_number() -> None:
    words = codebook.full_set()
    weight = words[[500, 2, 7, 7, 500, 300]].reshape(2, 3, 3, 3)
    assert codebook.numbers(codebook.most_frequent(weight, 1)).tolist() == [7, 500]
    assert codebook.numbers(codebook.most_frequent(weight, 3)).tolist() == [7, 500, 2, 300, 0, 1, 3, 4]


def test_most_frequent_takes_zero_as_plus_one() -> None:
    weight = torch.full((1, 1, 3, 3), -1.0)
    weight[0, 0, 0, 0] = 0.0
    weight[0, 0, 2, 2] = -0.0
    assert codebook.numbers(codebook.most_frequent(weight, 1)).tolist() == [257, 0]


def test_most_frequent_counts_groups_of_consecutive_channels() -> None:
    weight = torch.tensor([[-1.0] * 8 + [-1.0] * 7 + [1.0]]).reshape(1, 16, 1, 1)
    assert codebook.numbers(codebook.most_frequent(weight, 1)).tolist() == [0, 1]
    assert codebook.numbers(codebook.most_frequent(weight, 1, (4, 1, 1))).tolist() == [0, 1]
    assert codebook.numbers(codebook.most_frequent(weight, 1, (2, 1, 1))).tolist() == [0, 1]


def test_most_frequent_refuses_bad_weights() -> None:
    with pytest.raises(ValueError, match=re.escape("kernel_size must be (3, 3) or (1, 1) to have a default unit")):
        codebook.most_frequent(torch.ones(1, 1, 5, 5), 2)
    with pytest.raises(ValueError, match=re.escape("weight must have shape (C_out, C_in, kh, kw), got (3, 3)")):
        codebook.most_frequent(torch.ones(3, 3), 2)
    with pytest.raises(ValueError, match="weight must be finite, got nan first and 2 such values in all"):
        codebook.most_frequent(
            torch.tensor([0.0, torch.nan, torch.nan] * 3).reshape(1, 1, 3, 3)[..., :1, :], 1, (1, 1, 3)
        )


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


# ---- check_codebook ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int8, torch.int64])
def test_check_codebook_canonicalises(dtype: torch.dtype) -> None:
    words = codebook.vanilla(3, seed=0)
    for given_words in (words, words[:, 0], words.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)):
        checked = codebook.check_codebook(given_words.to(dtype))
        assert checked.dtype == torch.float32
        assert checked.is_contiguous()
        assert torch.equal(checked, words)
    vectors = codebook.vanilla(3, UNIT_1X1, seed=0)
    assert torch.equal(codebook.check_codebook(vectors.flatten(1).to(dtype)), vectors)


def test_check_codebook_takes_one_to_256_codewords_and_cuts_the_graph() -> None:
    assert codebook.check_codebook(torch.ones(1, 2, 1, 5)).shape == (1, 2, 1, 5)
    assert codebook.check_codebook(codebook.full_set()[:256]).shape == (256, 1, 3, 3)
    assert not codebook.check_codebook(torch.nn.Parameter(torch.ones(2, 8))).requires_grad


def with_value(value: float, *at: int, dtype: torch.dtype = torch.float32) -> Tensor:
    words = torch.ones(4, 1, 3, 3, dtype=dtype)
    words[at] = value
    return words


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (with_value(0.5, 3, 0, 1, 2), ValueError, "codebook must hold only +1 and -1, got 0.5 at [3, 0, 1, 2]"),
        (with_value(torch.nan, 0, 0, 2, 1)[:, 0], ValueError, "only +1 and -1, got nan at [0, 0, 2, 1]"),
        (with_value(0, 1, 0, 0, 0, dtype=torch.int32), ValueError, "only +1 and -1, got 0 at [1, 0, 0, 0]"),
        (with_value(255, 1, 0, 0, 0, dtype=torch.uint8), ValueError, "only +1 and -1, got 255 at [1, 0, 0, 0]"),
        (with_value(1 + 1e-12, 1, 0, 0, 0, dtype=torch.float64), ValueError, "got 1.000000000001 at [1, 0, 0, 0]"),
        (torch.ones(257, 1, 3, 3), ValueError, "codebook must hold 1 to 256 codewords, got 257"),
        (torch.ones(0, 1, 3, 3), ValueError, "codebook must hold 1 to 256 codewords, got 0"),
        (torch.ones(4, 0, 3, 3), ValueError, "codewords of at least one tap, got shape (4, 0, 3, 3)"),
        (torch.ones(4), ValueError, "shape (K, g, kh, kw), (K, kh, kw) or (K, g), got (4,)"),
        (torch.ones(4, 1, 1, 3, 3), ValueError, "shape (K, g, kh, kw), (K, kh, kw) or (K, g), got (4, 1, 1, 3, 3)"),
        (torch.tensor(1.0), ValueError, "shape (K, g, kh, kw), (K, kh, kw) or (K, g), got ()"),
        (torch.ones(4, 8, dtype=torch.bool), TypeError, "floating or integer dtype, got torch.bool"),
        (torch.ones(4, 8, dtype=torch.cfloat), TypeError, "floating or integer dtype, got torch.complex64"),
        ([[1] * 8], TypeError, "codebook must be a tensor, got list"),
    ],
)
def test_check_codebook_refuses(words: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        codebook.check_codebook(words)
    with pytest.raises(error, match=re.escape(message)):
        codebook.decode(torch.zeros(1, 1, dtype=torch.int64), words)


def test_as_units_can_be_traced_where_check_codebook_cannot() -> None:
    words = torch.ones(4, 3, 3, device="meta")
    assert codebook.as_units(words).shape == (4, 1, 3, 3)
    with pytest.raises((RuntimeError, NotImplementedError)):
        codebook.check_codebook(words)


def test_default_unit() -> None:
    assert codebook.default_unit((3, 3)) == (1, 3, 3)
    assert codebook.default_unit((1, 1)) == (8, 1, 1)
    with pytest.raises(ValueError, match=re.escape("to have a default unit, got (3, 1)")):
        codebook.default_unit((3, 1))


# ---- the fewest changed signs ----


def changed_signs(weight: Tensor, words: Tensor) -> int:
    """How many signs of the units differ from their nearest codewords, counted unit by unit."""
    group = words.shape[1]
    taps = codebook.units_of(torch.where(weight >= 0, 1, -1), (group, *words.shape[2:])).flatten(2).flatten(0, 1)
    return sum(min(int((unit != word).sum()) for word in words.flatten(1)) for unit in taps)


@pytest.mark.parametrize(("tau", "seed"), [(1, 0), (1, 1), (1, 2), (2, 3), (2, 4)])
def test_hamming_kmeans_comes_close_to_the_best_of_all_codebooks(tau: int, seed: int) -> None:
    unit = (2, 1, 2)
    weight = weight_for(unit, 6, 8, seed)
    words = codebook.full_set(unit)
    best = min(changed_signs(weight, words[list(some)]) for some in itertools.combinations(range(16), 2**tau))
    assert best <= changed_signs(weight, codebook.hamming_kmeans(weight, tau, unit)) <= 1.05 * best


@pytest.mark.parametrize("unit", PAPER_UNITS)
@pytest.mark.parametrize("tau", [1, 3, 5])
def test_hamming_kmeans_changes_fewer_signs_and_no_exchange_helps(unit: Unit, tau: int) -> None:
    weight = weight_for(unit, 20, 24, seed=tau)
    words = codebook.hamming_kmeans(weight, tau)
    found = codebook.numbers(words).tolist()
    assert found == sorted(set(found))
    assert len(found) == 2**tau
    changed = changed_signs(weight, words)
    assert changed < changed_signs(weight, codebook.most_frequent(weight, tau))
    everything = codebook.full_set(unit)
    others = [n for n in range(len(everything)) if n not in found]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        out, into = (int(torch.randint(len(some), (), generator=generator)) for some in (found, others))
        exchanged = [n for place, n in enumerate(found) if place != out] + [others[into]]
        assert changed_signs(weight, everything[exchanged]) >= changed


@pytest.mark.parametrize("unit", PAPER_UNITS)
def test_hamming_kmeans_changes_nothing_where_there_are_enough_codewords(unit: Unit) -> None:
    words = codebook.vanilla(4, unit, seed=0)
    chosen = torch.randint(0, 16, (8, 8), generator=torch.Generator().manual_seed(0))
    weight = codebook.decode(chosen, words)
    assert changed_signs(weight, codebook.hamming_kmeans(weight, 4)) == 0
    assert changed_signs(weight, codebook.hamming_kmeans(weight, 5)) == 0
    assert changed_signs(weight, codebook.hamming_kmeans(weight, 3)) > 0


def test_hamming_kmeans_of_the_whole_set() -> None:
    weight = weight_for(UNIT_1X1, 40, 8, seed=0)
    assert torch.equal(codebook.hamming_kmeans(weight, 8), codebook.full_set(UNIT_1X1))


def test_hamming_kmeans_repeats_and_leaves_the_global_generator_alone() -> None:
    weight = weight_for(UNIT_3X3, 16, 16, seed=0)
    state = torch.get_rng_state()
    first = codebook.hamming_kmeans(weight, 5, seed=3)
    assert torch.equal(first, codebook.hamming_kmeans(weight, 5, seed=3))
    assert torch.equal(state, torch.get_rng_state())
    assert first.dtype == torch.float32


def test_hamming_kmeans_takes_zero_as_plus_one() -> None:
    words = codebook.hamming_kmeans(torch.zeros(4, 4, 3, 3), 1)
    assert changed_signs(torch.zeros(4, 4, 3, 3), words) == 0
    assert 511 in codebook.numbers(words)


@pytest.mark.parametrize(
    ("weight", "tau", "unit", "message"),
    [
        (torch.ones(4, 4, 5, 2), 4, (1, 5, 2), "unit must have at most 9 taps for k-means, got 10 in (1, 5, 2)"),
        (torch.ones(4, 4, 5, 5), 4, None, "kernel_size must be (3, 3) or (1, 1)"),
        (torch.full((4, 4, 3, 3), torch.nan), 4, None, "weight must be finite"),
        (torch.ones(4, 4, 3, 3), 9, None, "tau must be 1 to 8"),
        (torch.ones(4, 3), 4, None, "weight must have shape (C_out, C_in, kh, kw), got (4, 3)"),
    ],
)
def test_hamming_kmeans_refuses(weight: Tensor, tau: int, unit: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        codebook.hamming_kmeans(weight, tau, unit)
