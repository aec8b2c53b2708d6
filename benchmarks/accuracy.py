"""Trains every method on Fashion-MNIST: ``python benchmarks/accuracy.py [--quick] [--data FOLDER] [--out FOLDER]``.

A ResNet-8, five epochs by the paper's recipe, three seeds, one process per core with one thread each. Every run leaves
its result and its network in the folder; a run whose result is there is not made again, so the command can be stopped
and given again. ``accuracy_report.py`` makes the tables and pictures of docs/accuracy.md from the results.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.progress import Progress

from machine import environment
from subbit_infer import models
from subbit_infer.core.atomic import replacing
from subbit_infer.training import data
from subbit_infer.training.recipes import recipe
from subbit_infer.training.run import Run

NETWORK, EPOCHS, BATCH = "resnet8", 5, 256
SEEDS = (0, 1, 2)
TAUS = (3, 5)
SUBBIT = ("clustered", "vanilla", "snn", "baseline-a", "baseline-b", "baseline-b10")
SUBBIT_A1 = ("clustered", "vanilla", "snn")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


class Setting(NamedTuple):
    """What differs between runs."""

    method: str
    tau: int
    activation_bits: int
    seed: int

    @property
    def name(self) -> str:
        """Of the run's files."""
        codewords = "" if self.method in ("float", "1-bit") else f"-tau{self.tau}"
        return f"{self.method}{codewords}-a{self.activation_bits}-seed{self.seed}"


def settings(*, quick: bool) -> Iterator[Setting]:
    """All runs: what says most comes first. ``quick``: three methods at tau = 3 with float activations."""
    if quick:
        for seed in SEEDS:
            yield from (Setting(method, 3, 32, seed) for method in ("1-bit", "clustered", "vanilla"))
        return
    for methods, bits, taus in (
        (("1-bit",), 32, TAUS[:1]), (SUBBIT[:2], 32, TAUS),
        (("1-bit",), 1, TAUS[:1]), (SUBBIT_A1[:2], 1, TAUS),
        (SUBBIT[2:], 32, TAUS[:1]), (("float",), 32, TAUS[:1]),
        (SUBBIT_A1[2:], 1, TAUS), (SUBBIT[2:], 32, TAUS[1:]),
    ):  # fmt: skip
        for tau in taus:
            for seed in SEEDS:
                yield from (Setting(method, tau, bits, seed) for method in methods)


def run_of(setting: Setting, images: data.Images) -> Run:
    """A run of a setting, before its first step."""
    method, tau, bits, seed = setting
    model = models.resnet8(bits, len(images.classes), seed, images.train.shape[1]).train()
    chosen = recipe("paper", method=method, tau=tau, activation_bits=bits, seed=100 * seed)
    return Run(NETWORK, model, images, chosen, EPOCHS, BATCH, seed, crop=False)


def make(setting: Setting, folder: Path, images: data.Images) -> Iterator[int]:
    """Trains one network and writes NAME.safetensors, its state, and NAME.json; gives steps."""
    run = run_of(setting, images)
    start = time.time()
    yield from run.train()
    result = {
        **setting._asdict(),
        "accuracy": run.log[-1]["test_accuracy"],
        "log": run.log,
        "seconds": round(time.time() - start),
        "settings": run.settings(),
        "environment": environment(threads=1, isa="native"),
    }
    run.save(folder / f"{setting.name}.safetensors")
    with replacing(folder / f"{setting.name}.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1, default=str))


def work(setting: Setting, folder: Path, source: Path, steps: Any) -> None:
    """One process' share."""
    torch.set_num_threads(1)
    for step in make(setting, folder, data.load(source)):
        if step % 10 == 0:
            steps.put(10)


def main(
    source: Annotated[Path, typer.Option("--data", help="Folder of the data set.")] = FASHION_MNIST,
    out: Annotated[Path, typer.Option(help="Where results and networks go.")] = Path("out/accuracy"),
    quick: Annotated[bool, typer.Option("--quick", help="Three methods at tau = 3: under twenty minutes.")] = False,
    processes: Annotated[int, typer.Option(help="Runs at a time.")] = os.cpu_count() or 1,
) -> None:
    """Train every method on Fashion-MNIST."""
    steps_per_run = EPOCHS * (len(data.load(source).train) // BATCH)
    out.mkdir(parents=True, exist_ok=True)
    left = [setting for setting in settings(quick=quick) if not (out / f"{setting.name}.json").exists()]
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(processes, spawn) as pool, Progress() as progress:
        steps = manager.Queue()
        bar = progress.add_task(f"{len(left)} runs", total=len(left) * steps_per_run)
        runs = {pool.submit(work, setting, out, source, steps): setting for setting in left}
        for run in as_completed(runs):
            run.result()
            while not steps.empty():
                progress.advance(bar, steps.get())
            result = json.loads((out / f"{runs[run].name}.json").read_text())
            progress.console.print(f"{runs[run].name}: {result['accuracy']:.2f} %, {result['seconds']} s")


if __name__ == "__main__":
    typer.run(main)
