"""The compiled search for nearest codewords: the bits of the definition, at every level."""

from __future__ import annotations

import pytest
import torch
from helpers import MACHINE_LEVELS

from subbit_infer.backends import cpu
from subbit_infer.core.codebook import nearest_codewords
from subbit_infer.ops.assignment import nearest


def units_and_codebook(count: int, taps: int, codewords: int, *, integers: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count + codewords)
    units = torch.randn(count, taps, generator=generator)
    if integers:  # many equal products
        units = torch.randint(-1, 2, (count, taps), generator=generator).float()
    return units, torch.randint(0, 2, (codewords, taps), generator=generator) * 2.0 - 1


@pytest.mark.parametrize("level", MACHINE_LEVELS)
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("taps", [8, 9])
@pytest.mark.parametrize("codewords", [1, 2, 7, 32, 256])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 31, 32, 33, 4097])
def test_every_level_has_the_bits_of_the_definition(level, integers, taps, codewords, count):
    units, codebook = units_and_codebook(count, taps, codewords, integers=integers)
    assert torch.equal(cpu.nearest(units, codebook, level), nearest_codewords(units, codebook))


@pytest.mark.parametrize("level", MACHINE_LEVELS)
def test_what_is_not_a_number_has_index_0(level):
    units, codebook = units_and_codebook(100, 9, 8, integers=False)
    expected = nearest_codewords(units, codebook)
    units[7, 8], expected[7] = torch.nan, 0
    assert torch.equal(cpu.nearest(units, codebook, level), expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads(threads):
    units, codebook = units_and_codebook(20_000, 9, 32, integers=False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(nearest(units, codebook), nearest_codewords(units, codebook))
    finally:
        torch.set_num_threads(before)


def test_views_and_other_layouts():
    units, codebook = units_and_codebook(64, 9, 16, integers=False)
    assert torch.equal(nearest(units.t().contiguous().t(), codebook[::2]), nearest_codewords(units, codebook[::2]))


def test_the_operator_is_a_good_citizen():
    units, codebook = units_and_codebook(64, 8, 4, integers=False)
    torch.library.opcheck(torch.ops.subbit_infer.nearest.default, (units, codebook))


def test_other_units_are_refused():
    with pytest.raises(ValueError, match="taps must be 8 or 9, got 4"):
        nearest(torch.ones(3, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"codewords must be 1 to 2\^taps, got 0"):
        nearest(torch.ones(3, 9), torch.ones(0, 9))
    with pytest.raises(TypeError, match=r"units must be float32, got torch.float64"):
        nearest(torch.ones(3, 9, dtype=torch.float64), torch.ones(2, 9))
    with pytest.raises(ValueError, match=r"got \(3, 9\) and \(2, 8\)"):
        nearest(torch.ones(3, 9), torch.ones(2, 8))
