"""What commands print: results on stdout, everything else on stderr; and how they fail."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from subbit_infer.core import tables
from subbit_infer.core.tables import Tabular

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]

_EXPECTED = (ValueError, TypeError, OSError, ImportError, NotImplementedError)  # their messages say what is wrong


class UsageError(ValueError):
    """The command line asks for what does not exist or does not go together: exit status 2."""


class Commands(typer.core.TyperGroup):
    """Commands whose errors are one line on stderr; with SUBBIT_DEBUG=1 the traceback comes first."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Runs a command and ends with its status: 0; 1 where the input is bad; 2 where the command line is."""
        debug = os.environ.get("SUBBIT_DEBUG", "") not in ("", "0")
        try:
            with ExitStack() as stack:
                if not debug:
                    stack.enter_context(_quiet())
                status = super().main(*args, **options | {"standalone_mode": False})
        except KeyboardInterrupt:
            status = 130
        except Exception as error:
            if debug:
                sys.excepthook(type(error), error, error.__traceback__)
            print(f"subbit: error: {_in_one_line(error)}", file=sys.stderr)
            # Errors of the command line's parser carry their status.
            status = getattr(error, "exit_code", 2 if isinstance(error, UsageError) else 1)
        sys.exit(status if isinstance(status, int) else 0)


def _in_one_line(error: Exception) -> str:
    if hasattr(error, "format_message"):  # of the command line's parser
        return " ".join(str(error.format_message()).split()).removesuffix(".") + "; see --help"
    text = " ".join(str(error).split())
    if isinstance(error, _EXPECTED) and text:
        return text
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first} (SUBBIT_DEBUG=1 shows where)"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the warnings and logs of libraries: a command itself says what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def working(text: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, if that is a terminal, while the block runs; what models print goes to stderr.

    Gives a function to call after each of ``total`` steps. Nothing redraws the bar between counted steps: that
    would disturb what is being measured.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    progress = Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, auto_refresh=total is None,
        redirect_stdout=False,
    )  # fmt: skip
    with progress, redirect_stdout(sys.stderr):
        task = progress.add_task(text, total=total)

        def step() -> None:
            progress.advance(task)
            progress.refresh()

        yield step


def note(text: str) -> None:
    """Prints a remark that is not part of the result."""
    print(text, file=sys.stderr)


def show(result: dict[str, Any], *reports: Tabular | str, as_json: bool) -> None:
    """Prints a result, as JSON or as reports below each other."""
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        tables.show(*reports)
