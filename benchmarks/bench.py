"""Every figure that this project claims, measured: `make bench`, or one part of it.

    make bench                           # all parts, tables, out/bench/*.json and *.png: some 12 minutes
    make bench ARGS=--quick              # the same with fewer rounds and sizes: 3 minutes, to see that all works
    python benchmarks/bench.py layers --isa avx2
    python benchmarks/bench.py report    # docs/performance.md from out/bench/*.json

Each part runs in a process of its own, since libraries take their number of threads and their level when they are
loaded. Within a part everybody's result is checked first; then the contenders take turns in one process.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import figures
import machine
import report as reports
import suites
import tables
from results import THREADS, Record, load, load_all
from suites import Run
from timing import Pace, WrongResultError

OUT = Path("out/bench")
FULL = Pace(rounds=31, least=9, seconds=8.0)
QUICK = Pace(rounds=5, least=3, seconds=0.5)


class Part(NamedTuple):
    """One process of a whole run."""

    name: str
    threads: int = 1
    isa: str = "native"
    options: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Its command line."""
        threads = ["--threads", str(self.threads)] if self.threads > 1 and self.name != "threads" else []
        isa = ["--isa", self.isa] if self.isa != "native" else []
        return [self.name, *threads, *isa, *self.options]


PARTS = (
    Part("layers"),
    Part("layers", isa="avx2"),
    Part("layers", threads=THREADS),
    Part("networks"),
    Part("networks", threads=THREADS, options=("--no-compile",)),
    Part("sweeps"),
    Part("sample"),
    Part("plans"),
    Part("threads", threads=THREADS),
    Part("calls"),
)

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, rich_markup_mode=None)
console = Console()

Threads = Annotated[int, typer.Option(min=1, help="Threads of everybody.")]
Isa = Annotated[str, typer.Option(help=f"What to hold everybody to: {' or '.join(machine.LIMITS)}.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer rounds and sizes.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Out = Annotated[Path, typer.Option(help="Where JSON and figures go.")]


def part_name(name: str, threads: int, isa: str) -> str:
    """The part's file: what, and how it differs from one thread at the machine's own level."""
    of_threads = f"-{threads}threads" if threads > 1 and name != "threads" else ""
    return name + (f"-{isa}" if isa != "native" else "") + of_threads


def measure(
    name: str, suite: Callable[[Run], None], threads: int, isa: str, quick: bool, as_json: bool, out: Path
) -> None:
    """Runs one part, prints it and keeps it."""
    if isa not in machine.LIMITS:
        raise typer.BadParameter(f"must be {' or '.join(machine.LIMITS)}, got {isa!r}", param_hint="--isa")
    machine.enter(threads, isa)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        run = Run(QUICK if quick else FULL, quick, progress)
        try:
            with torch.inference_mode():
                suite(run)
        except WrongResultError as error:
            console.print(f"[bold red]FAILED[/]: wrong result, nothing is measured: {error}")
            raise typer.Exit(1) from error
    if isa != "native":
        run.note("ONNX Runtime knows no limit, it uses the machine's own level")
    if run.unsteady:
        run.note(
            f"{len(run.unsteady)} medians are unsteady (quartiles more than 25 % apart, or most runs disturbed by "
            f"other processes), as that of {run.unsteady[0]}"
        )
    rates = {kind: median(found[kind] for found in run.rates) for kind in (run.rates[0] if run.rates else {})}
    environment = machine.environment(threads, isa) | {"quick": quick}
    record = Record(part_name(name, threads, isa), environment, run.results, run.notes, rates)
    record.save(out)
    if as_json:
        print(record.to_json(), end="")
    else:
        tables.show(record, console)


@app.command()
def layers(threads: Threads = 1, isa: Isa = "native", quick: Quick = False, json: Json = False, out: Out = OUT) -> None:
    """The ResNets' 3x3 layers and ResNet-50's 1x1 layers against everybody, and the machine's rates."""
    measure("layers", suites.layers, threads, isa, quick, json, out)


@app.command()
def networks(
    threads: Threads = 1,
    isa: Isa = "native",
    quick: Quick = False,
    json: Json = False,
    out: Out = OUT,
    compile: Annotated[bool, typer.Option(help="Whether torch.compile takes part.")] = True,  # noqa: A002
) -> None:
    """Whole networks against the dense ones in every engine; the quick run leaves torch.compile out."""
    compiled = compile and not quick
    measure("networks", lambda run: suites.networks(run, compiled=compiled), threads, isa, quick, json, out)


@app.command()
def sweeps(threads: Threads = 1, isa: Isa = "native", quick: Quick = False, json: Json = False, out: Out = OUT) -> None:
    """Time against tau, the number of outputs, and the batch."""
    measure("sweeps", suites.sweeps, threads, isa, quick, json, out)


@app.command()
def sample(threads: Threads = 1, isa: Isa = "native", quick: Quick = False, json: Json = False, out: Out = OUT) -> None:
    """A sample of all sizes against eager PyTorch: where are we slower?"""
    measure("sample", suites.never_slower, threads, isa, quick, json, out)


@app.command()
def plans(isa: Isa = "native", quick: Quick = False, json: Json = False, out: Out = OUT) -> None:
    """How far the planner's choices are from the best plans measured, over the same sample."""
    measure("plans", suites.plans, 1, isa, quick, json, out)


@app.command()
def threads(quick: Quick = False, json: Json = False, out: Out = OUT) -> None:
    """Ours on one thread and on two."""
    measure("threads", suites.threads, THREADS, "native", quick, json, out)


@app.command()
def calls(quick: Quick = False, json: Json = False, out: Out = OUT) -> None:
    """The overhead of a call."""
    measure("calls", suites.calls, 1, "native", quick, json, out)


@app.command(name="all")
def everything(quick: Quick = False, json: Json = False, out: Out = OUT) -> None:
    """All parts, each in a process of its own; then the figures and the bars."""
    status = Console(stderr=True)
    for path in out.glob("*.json"):
        path.unlink()  # of an earlier run, whose parts must not be mixed with this one's
    for number, part in enumerate(PARTS, start=1):
        title = f"[{number}/{len(PARTS)}] {' '.join(part.arguments)}"
        if machine.cpus() < part.threads:
            status.print(f"{title}: skipped, this process may use {machine.cpus()} CPU", markup=False)
            continue
        status.print(f"{title} ...", markup=False)
        start = time.perf_counter()
        command = [sys.executable, __file__, *part.arguments, "--out", str(out)] + ["--quick"] * quick
        variables = os.environ | machine.variables(part.threads, part.isa)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL if json else None, env=variables)
        status.print(f"{title}: {time.perf_counter() - start:.0f} s", markup=False)
    records = load_all(out)
    drawn = figures.draw_all(records, out)
    if json:
        print("[" + ",\n".join(record.to_json() for record in records.values()) + "]")
    else:
        tables.show_bars(records, console)
        console.print(f"JSON: {out}/*.json. Figures: {', '.join(str(path) for path in drawn)}", highlight=False)


@app.command()
def report(
    out: Out = OUT,
    gpu: Annotated[Path, typer.Option(help="What make bench-cuda wrote.")] = OUT.parent / "bench-cuda" / "cuda.json",
    docs: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("docs"),
) -> None:
    """Writes docs/performance.md and docs/figures from the JSON of the last run, and of the last one on a GPU."""
    records = load_all(out)
    if not records:
        raise typer.BadParameter(f"{out} holds no JSON of a run: make bench first", param_hint="--out")
    console.print(f"Wrote {reports.write(records, load(gpu) if gpu.exists() else None, docs)}")


@app.command()
def show(path: Path) -> None:
    """Prints the tables of one JSON file."""
    tables.show(load(path), console)


if __name__ == "__main__":
    app()
