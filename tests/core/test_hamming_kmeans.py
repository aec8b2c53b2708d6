"""Codebooks by k-means in the Hamming distance, against the best of all codebooks."""

import itertools
import re
from typing import Any

import pytest
import torch
from by_hand import PAPER_UNITS, weight_for
from torch import Tensor

from subbit_infer.core import codebook
from subbit_infer.core.codebook import UNIT_1X1, UNIT_3X3, Unit

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
