"""The table and the figure of reductions: a wrong ratio would be believed."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

import reduction
from published import Network
from subbit_infer.core.cost import ConvShape

ENDS = ConvShape(64, 128, (3, 3), 7, 5)
NETWORK = Network("one layer between", [ENDS, ConvShape(128, 128, (3, 3), 7, 5), ENDS], 1)


def test_reductions_without_and_with_the_ends() -> None:
    weights, ends = 128 * 128 * 9, 2 * 32 * ENDS.weights
    body, whole = reduction.reductions(NETWORK, 3, 32, reduction.PARAMETERS)
    assert body == 3
    assert whole == pytest.approx((weights + ends) / (weights / 3 + ends))
    body, whole = reduction.reductions(NETWORK, 3, 1, reduction.BIT_OPS)
    shared, ends = 128 * (9 * 8 + 128), 2 * 64 * ENDS.weights
    assert body == pytest.approx(weights / shared)
    assert whole == pytest.approx((weights + ends) / (shared + ends))


def test_the_table_has_every_number_of_bits() -> None:
    rows = reduction.table([NETWORK], reduction.BIT_OPS).rows
    assert [row[1] for row in rows] == [
        "32/32", "1/1", "0.67/1", "0.56/1", "0.44/1", "1/32", "0.67/32", "0.56/32", "0.44/32",
    ]  # fmt: skip
    assert {row[0] for row in rows} == {"one layer between, g = 1"}
    assert [row[1] for row in reduction.table([NETWORK], reduction.PARAMETERS).rows] == [
        "32/32", "1/32", "0.67/32", "0.56/32", "0.44/32",
    ]  # fmt: skip


def test_the_figure_has_a_bar_for_each_reduction() -> None:
    parameters, bit_ops = reduction.draw([NETWORK]).axes
    heights = [
        times for tau in reduction.TAUS for times in reduction.reductions(NETWORK, tau, 32, reduction.PARAMETERS)
    ]
    assert [bar.get_height() for bar in parameters.patches] == pytest.approx(heights)
    assert len(bit_ops.patches) == len(heights)
