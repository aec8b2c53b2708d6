"""Which kernel runs what, pinned for any machine on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import LEVELS, MACHINE_LEVELS, UNIT_1X1, UNIT_3X3

from subbit_infer.backends import native


def candidates(
    binary, unit=UNIT_3X3, codewords=32, units=128, outputs=128, stride=1, side=28, groups=1, level="avx512vbmi"
):
    """The ways to run a layer, the quickest first."""
    pixels = ((side - 1) // stride + 1) ** 2
    return native.candidates(
        binary, native.UNITS[unit], codewords, units, outputs, groups, stride, pixels, side * side, level
    )


def select(binary, **problem):
    return candidates(binary, **problem)[0]


def find(plan, binary, **problem):
    return next(c for c in candidates(binary, **problem) if c["plan"] == plan)


@pytest.mark.parametrize(
    ("binary", "level", "plans"),
    [
        (False, "scalar", {"rows": "float_rows_scalar"}),
        (False, "avx2", {"rows": "float_rows_avx2"}),
        (False, "avx512", {"rows": "float_rows_avx512"}),
        (False, "avx512vbmi", {"rows": "float_rows_avx512"}),
        (
            True,
            "scalar",
            {"rows": "binary_rows_scalar", "bits": "binary_bits_scalar", "patches": "binary_patches_scalar"},
        ),
        (
            True,
            "avx2",
            {"rows": "binary_rows_avx2", "bits": "binary_bits_avx2", "patches": "binary_patches_scalar"},
        ),
        (
            True,
            "avx512vbmi",
            {
                "rows": "binary_rows_avx2",
                "bits": "binary_bits_avx512vbmi",
                "patches": "binary_patches_avx512vbmi",
            },
        ),
    ],
)
def test_each_family_is_run_by_the_best_kernel_of_the_level(binary, level, plans):
    found = [(c["plan"], c.get("kernel")) for c in candidates(binary, level=level)]
    assert sorted(found, key=str) == sorted((plans | {"dense": None}).items(), key=str)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("tau", [1, 5, 6])
def test_scalar_kernels_run_only_where_a_family_has_no_other(level, tau):
    """They are complete, so the planner compares them with the others at every level."""
    for unit in (UNIT_3X3, UNIT_1X1):
        for units, outputs, side in ((1, 1, 1), (16, 16, 8), (512, 512, 7), (64, 64, 56)):
            problem = {"unit": unit, "units": units, "outputs": outputs, "side": side, "codewords": 1 << tau}
            for binary in (False, True):
                for c in candidates(binary, level=level, **problem):
                    has_better = level != "scalar" and (c["plan"] != "patches" or level == "avx512vbmi")
                    assert c.get("level") != "scalar" or not has_better, f"{c} {problem}"


# Layers of networks (side, channels in and out, stride) and what runs them; measured in benchmarks/NOTES.md.
@pytest.mark.parametrize(
    ("binary", "channels", "outputs", "side", "stride", "tau", "plan"),
    [
        (False, 64, 64, 56, 1, 5, "rows"),
        (False, 512, 512, 7, 1, 5, "rows"),
        (False, 256, 512, 14, 2, 5, "rows"),
        (False, 64, 16, 56, 1, 7, "dense"),  # 128 codewords for 16 outputs to share
        (False, 64, 64, 56, 1, 8, "dense"),
        (True, 64, 64, 56, 1, 5, "patches"),
        (True, 512, 512, 7, 1, 5, "patches"),
        (True, 64, 128, 56, 2, 5, "bits"),
        (True, 512, 16, 7, 1, 5, "bits"),  # 16 outputs do not fill a look-up of 64
        (True, 128, 128, 28, 1, 8, "bits"),  # 256 codewords do not fit a register
    ],
)
def test_plan(binary, channels, outputs, side, stride, tau, plan):
    problem = {"units": channels, "outputs": outputs, "side": side, "stride": stride, "codewords": 1 << tau}
    assert select(binary, **problem)["plan"] == plan


def test_cost_grows_with_the_work():
    for binary in (False, True):
        for plan in {c["plan"] for c in candidates(binary)}:
            for more in ({"units": 256}, {"outputs": 256}, {"side": 56}, {"groups": 2}):
                assert find(plan, binary, **more)["nanoseconds"] > find(plan, binary)["nanoseconds"], f"{plan} {more}"


def test_bits_are_for_taps_close_together():
    unit = native.UNITS[UNIT_3X3]
    for spread, has_bits in ((4, True), (5, False)):  # the gaps between the taps would be packed too
        plans = [c["plan"] for c in native.candidates(True, unit, 32, 64, 64, 1, spread, 49, 900, "avx512vbmi")]
        assert ("bits" in plans) == has_bits


@pytest.mark.parametrize(("codewords", "has_patches"), [(64, True), (65, False)])
def test_patches_are_for_responses_that_fit_a_register(codewords, has_patches):
    assert ("patches" in [c["plan"] for c in candidates(True, codewords=codewords)]) == has_patches


@pytest.mark.parametrize(("unit", "most"), [(UNIT_3X3, 3640), (UNIT_1X1, 4095)])
def test_too_many_binary_taps_run_as_floats(unit, most):
    fits = find("rows", True, unit=unit, units=most, level="avx2")
    over = find("rows", True, unit=unit, units=most + 1, level="avx2")
    assert (fits["kernel"], fits["binarize"]) == ("binary_rows_avx2", False)
    assert (over["kernel"], over["binarize"]) == ("float_rows_avx2", True)


@pytest.mark.parametrize(("codewords", "units"), [(2, 32), (8, 32), (32, 12), (64, 6), (128, 3), (256, 1)])
def test_a_block_of_float_responses_is_at_most_24_kib(codewords, units):
    plan = find("rows", False, codewords=codewords, units=512, level="avx512")
    assert plan["units_per_block"] == units
    assert units * codewords * 16 * 4 <= 24 * 1024


@pytest.mark.parametrize("codewords", [2, 16, 32, 64, 256])
def test_byte_sums_cannot_overflow(codewords):
    plan = find("rows", True, codewords=codewords, units=512, level="avx2")
    assert 9 * plan["units_per_block"] <= 127


def test_unknown_level_is_refused():
    with pytest.raises(ValueError, match="got 'sse9'"):
        select(True, level="sse9")


def run_with_plan(plan: str) -> subprocess.CompletedProcess[str]:
    program = """if True:
        import torch, subbit_infer
        from subbit_infer.backends import cpu, native
        from subbit_infer.core import codebook
        weight = subbit_infer.PackedWeight.from_indices(torch.zeros(8, 16, dtype=torch.long), codebook.vanilla(5))
        prepared = cpu.prepare(weight.packed_indices, weight.packed_codebook, 16, 32, (1, 3, 3))
        subbit_infer.conv(torch.ones(1, 16, 9, 9), weight)
        print(*(conv.kernel for conv in prepared.convs.values()))"""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"SUBBIT_PLAN": plan},
        capture_output=True,
        text=True,
        check=False,
    )


def test_subbit_plan_forces_a_plan():
    assert run_with_plan("dense").stdout.strip() == "None"
    assert "float_rows_" in run_with_plan("sharing").stdout
    assert "float_rows_" in run_with_plan("rows").stdout


def test_subbit_plan_refuses_unknown_names():
    names = "auto, sharing, rows, patches, bits, product, sparse or dense"
    assert f"SUBBIT_PLAN must be {names}" in run_with_plan("magic").stderr


def run_with_isa(isa: str) -> subprocess.CompletedProcess[str]:
    program = "from subbit_infer.backends import cpu, native; print(native.active_level())"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent.parent,
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
