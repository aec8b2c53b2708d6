"""Pairs of sizes: strides, paddings and dilations by rows and columns."""

from __future__ import annotations

from collections.abc import Sequence


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """An int, or one or two of them, as (rows, columns); nothing is checked."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
