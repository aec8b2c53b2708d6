"""The ``subbit`` command: what its subcommands are called."""

from __future__ import annotations

from typing import Annotated

import typer

import subbit_infer
from subbit_infer.cli.bench import bench
from subbit_infer.cli.convert import compress, convert, export
from subbit_infer.cli.env import env
from subbit_infer.cli.explain import explain
from subbit_infer.cli.info import info
from subbit_infer.cli.screen import Commands
from subbit_infer.cli.train import train

app = typer.Typer(cls=Commands, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def subbit(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Fast inference for sub-bit neural networks: train, convert, inspect and measure models.

    Exit status: 0; 1 where a file or model is bad or there is nothing to convert; 2 where the command line is wrong.
    With SUBBIT_DEBUG=1 errors come with their traceback.
    """
    if version:
        print(subbit_infer.__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


for command in (train, info, convert, compress, export, bench, explain, env):
    app.command()(command)


def main() -> None:
    """Runs the command line."""
    app()
