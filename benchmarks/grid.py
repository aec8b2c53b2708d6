"""A table that can be printed and written into a document."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class Grid:
    """Headings and rows of text.

    Args:
        title: Above the table.
        headings: Of each column.
        rows: The cells.
        totals: Rows that sum up.
        names: How many columns, from the left, are words and not figures.
    """

    title: str
    headings: list[str]
    rows: list[list[str]] = field(default_factory=list)
    totals: list[list[str]] = field(default_factory=list)
    names: int = 1

    def rich(self) -> Table:
        """For the terminal."""
        from rich.box import SIMPLE_HEAD  # here, because a lent machine with a GPU may lack rich
        from rich.table import Table

        table = Table(
            title=self.title,
            title_justify="left",
            title_style="bold",
            box=SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for number, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if number < self.names else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        if self.totals:
            table.add_section()
        for row in self.totals:
            table.add_row(*row, style="bold")
        return table

    def markdown(self) -> str:
        """For a document; the title is left to it."""
        rule = [":---" if number < self.names else "---:" for number in range(len(self.headings))]
        lines = [self.headings, rule, *self.rows]
        lines += [[f"**{cell}**" if cell else "" for cell in row] for row in self.totals]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
