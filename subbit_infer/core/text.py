"""Tables as plain text, and data as JSON has it."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[tuple[str, ...]], right: Collection[str] = ()) -> list[str]:
    """Lines of columns under their headings, which are the first row; those named in ``right`` end aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    to_the_right = [heading in right for heading in rows[0]]
    lines = []
    for row in rows:
        cells = zip(row, widths, to_the_right, strict=True)
        lines.append("  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in cells).rstrip())
    return lines


def plain(value: object) -> object:
    """Tuples as lists, so that what JSON gives back is equal."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
