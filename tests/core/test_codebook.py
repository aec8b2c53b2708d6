"""Units and codebooks, against brute force written here."""

import itertools
import re
from collections import Counter
from typing import Any

import pytest
import torch
from by_hand import PAPER_UNITS, UNITS, number_by_hand, weight_for
from torch import Tensor

from subbit_infer.core import codebook
from subbit_infer.core.codebook import UNIT_1X1, UNIT_3X3, Unit

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
