"""Reports as tables: plain text as a string, by rich in terminals, and as HTML in notebooks."""

from __future__ import annotations

import html
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import rich.box
import rich.table
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_UNLIMITED = 1_000_000  # columns: plain text is never wrapped or cut off


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings.

    Attributes:
        headings: one per column.
        rows: the cells, as many per row as there are headings; what they hold is text, never markup.
        right: headings of the columns that are aligned to the right.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Collection[str] = ()

    def __rich__(self) -> rich.table.Table:
        """Columns wrap where the terminal is too narrow."""
        table = self._columns(box=rich.box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for column in table.columns:
            column.overflow = "fold"
        return table

    def lines(self) -> list[str]:
        """The table as plain text, without a frame and as wide as it is."""
        table = self._columns(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in table.columns:
            column.no_wrap = True
        console = Console(width=_UNLIMITED, color_system=None, force_terminal=False, force_jupyter=False)
        with console.capture() as captured:
            console.print(table)
        return [line.rstrip() for line in captured.get().splitlines()]

    def html(self) -> str:
        """The table as HTML."""
        align = [f' style="text-align: {"right" if heading in self.right else "left"}"' for heading in self.headings]
        lines = ["<table>", _html_row("th", self.headings, align)]
        return "\n".join([*lines, *(_html_row("td", row, align) for row in self.rows), "</table>"])

    def _columns(self, **options: Any) -> rich.table.Table:
        table = rich.table.Table(**options)
        for heading in self.headings:
            table.add_column(Text(heading), justify="right" if heading in self.right else "left")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def _html_row(tag: str, cells: Iterable[str], align: Iterable[str]) -> str:
    inside = "".join(f"<{tag}{how}>{html.escape(cell)}</{tag}>" for cell, how in zip(cells, align, strict=True))
    return f"<tr>{inside}</tr>"


class Tabular:
    """What is shown as lines of text and tables: by ``str``, by rich, and in notebooks."""

    def _parts(self) -> Iterator[str | Table]:
        """Lines and tables from top to bottom."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n".join(line for part in self._parts() for line in ([part] if isinstance(part, str) else part.lines()))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        for part in self._parts():
            yield Text(part) if isinstance(part, str) else part

    def _repr_html_(self) -> str:
        return "\n".join(
            f"<p>{html.escape(part)}</p>" if isinstance(part, str) else part.html() for part in self._parts()
        )


def show(*reports: Tabular | str) -> None:
    """Prints on stdout: by rich where that is a terminal, else as plain text."""
    console = Console()
    for report in reports:
        if console.is_terminal and isinstance(report, Tabular):
            console.print(report)
        else:
            print(report)


def as_json(report: DataclassInstance) -> dict[str, Any]:
    """A dataclass as dicts, lists, strings and numbers: what JSON gives back is equal."""
    return cast("dict[str, Any]", json.loads(json.dumps(asdict(report))))
