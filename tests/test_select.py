"""Which kernel runs what, pinned for any machine on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import LEVELS, MACHINE_LEVELS, UNIT_1X1, UNIT_3X3

from subbit_infer import _native


def select(binary, unit=UNIT_3X3, codewords=32, units=100, outputs=512, spread=1, level="avx512vbmi"):
    return _native.select(binary, _native.UNITS[unit], codewords, units, outputs, spread, level)


@pytest.mark.parametrize(
    ("binary", "codewords", "level", "kernel"),
    [
        (False, 32, "scalar", "float_rows_scalar"),
        (False, 32, "avx2", "float_rows_avx2"),
        (False, 32, "avx512", "float_rows_avx512"),
        (False, 256, "avx512vbmi", "float_rows_avx512"),
        (True, 32, "scalar", "binary_rows_scalar"),
        (True, 32, "avx2", "binary_rows_avx2"),
        (True, 32, "avx512", "binary_rows_avx2"),
        (True, 64, "avx512vbmi", "binary_tables_avx512vbmi"),
        (True, 64, "avx2", "binary_rows_avx2"),
        (True, 65, "avx2", "binary_bits_avx2"),
    ],
)
def test_kernel(binary, codewords, level, kernel):
    # 512 outputs, so that sharing pays where bits could be matched instead.
    assert select(binary, codewords=codewords, level=level)["kernel"] == kernel


@pytest.mark.parametrize(
    ("unit", "units", "outputs", "spread", "layout"),
    [
        (UNIT_3X3, 64, 64, 1, "bits"),
        (UNIT_3X3, 128, 128, 2, "bits"),
        (UNIT_3X3, 512, 512, 1, "tables"),
        (UNIT_3X3, 3, 64, 1, "tables"),  # three channels of a word's 64
        (UNIT_3X3, 64, 64, 4, "bits"),
        (UNIT_3X3, 64, 64, 5, "tables"),  # the gaps between the taps would be packed too
        (UNIT_1X1, 64, 64, 1, "bits"),
        (UNIT_1X1, 1, 512, 1, "tables"),
    ],
)
def test_bits_or_tables(unit, units, outputs, spread, layout):
    plan = select(True, unit, units=units, outputs=outputs, spread=spread)
    assert plan["kernel"] == f"binary_{layout}_avx512vbmi"


@pytest.mark.parametrize(("unit", "most"), [(UNIT_3X3, 3640), (UNIT_1X1, 4095)])
def test_too_many_binary_taps_run_as_floats(unit, most):
    fits = select(True, unit, units=most, level="avx2")
    over = select(True, unit, units=most + 1, level="avx2")
    assert (fits["kernel"], fits["binarize"]) == ("binary_rows_avx2", False)
    assert (over["kernel"], over["binarize"]) == ("float_rows_avx2", True)


@pytest.mark.parametrize(("codewords", "units"), [(2, 32), (8, 32), (32, 8), (64, 4), (128, 2), (256, 1)])
def test_a_block_of_float_responses_is_at_most_16_kib(codewords, units):
    plan = select(False, codewords=codewords, units=512, level="avx512")
    assert plan["units_per_block"] == units
    assert units * codewords * 16 * 4 <= 16 * 1024


@pytest.mark.parametrize("codewords", [2, 16, 32, 64, 256])
def test_byte_sums_cannot_overflow(codewords):
    plan = select(True, codewords=codewords, units=512, level="scalar")  # the other rows kernel has the same blocks
    assert 9 * plan["units_per_block"] <= 127


def test_unknown_level_is_refused():
    with pytest.raises(ValueError, match="got 'sse9'"):
        select(True, level="sse9")


def run_with_isa(isa: str) -> subprocess.CompletedProcess[str]:
    program = "from subbit_infer import _native; print(_native.active_level())"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        env=os.environ | {"SUBBIT_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("level", MACHINE_LEVELS)
def test_subbit_isa_lowers_the_level(level):
    assert run_with_isa(level).stdout.strip() == level


def test_subbit_isa_refuses_unknown_names():
    result = run_with_isa("sse9")
    assert result.returncode != 0
    assert "ValueError: SUBBIT_ISA must be scalar, avx2, avx512 or avx512vbmi, got 'sse9'" in result.stderr


@pytest.mark.skipif(MACHINE_LEVELS == LEVELS, reason="this machine has every level")
def test_subbit_isa_cannot_raise_the_level():
    result = run_with_isa("avx512vbmi")
    assert "the level can only be lowered" in result.stderr
