"""``subbit train``: a network and a data set in, a trained sub-bit network out."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subbit_infer.cli.screen import Json, UsageError, note, show, working
from subbit_infer.core.atomic import replacing

if TYPE_CHECKING:
    from subbit_infer.training.run import Run

CHECKPOINT, LOG, MODEL = "checkpoint.safetensors", "log.csv", "model.safetensors"


def train(
    network: Annotated[
        str, typer.Argument(help="resnet8, resnet20, resnet18, resnet34, resnet50, vgg-small or reactnet18.")
    ],
    data: Annotated[Path, typer.Option(help="Folder of IDX files, CIFAR's binary files, or train/CLASS/*.png.")],
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoint, log and model; made if need be.")],
    method: Annotated[str, typer.Option(help="1-bit, vanilla, snn, baseline-a, -b, -b10 or clustered.")] = "clustered",
    tau: Annotated[int, typer.Option(help="Bits per index: 2^tau codewords per layer.")] = 5,
    activation_bits: Annotated[int, typer.Option(help="32, or 1 for binary activations.")] = 32,
    recipe: Annotated[str, typer.Option(help="paper or two-stage.")] = "paper",
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; the recipe's.", show_default=False)] = None,
    batch: Annotated[int | None, typer.Option(help="Images per step; the recipe's.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of weights, codebooks and the order of images.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    json: Json = False,
) -> None:
    """Train a sub-bit network (or a 1-bit one) on labelled images.

    Ctrl-C ends after the current step and leaves a checkpoint; --resume goes on from it, to the same bits.
    """
    from subbit_infer.models import network_of
    from subbit_infer.training import data as data_sets
    from subbit_infer.training.recipes import T_MIN
    from subbit_infer.training.recipes import recipe as recipe_of
    from subbit_infer.training.run import Run

    checkpoint = output / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise UsageError(f"{checkpoint} exists: --resume goes on from it, another --out leaves it alone")
    if resume and not checkpoint.exists():
        raise UsageError(f"--resume needs {checkpoint}, which does not exist")
    changes: dict[str, Any] = {"method": method, "tau": tau, "activation_bits": activation_bits, "seed": seed}
    if recipe == "paper" and network in T_MIN:
        changes["t_min"] = T_MIN[network]
    chosen = recipe_of(recipe, **changes)
    images = data_sets.load(data)
    _, channels, height, width = images.train.shape
    try:
        model = network_of(network, activation_bits, len(images.classes), channels, (height, width), seed)
    except ValueError as error:  # what does not go together, all of it from the command line
        raise UsageError(str(error)) from error
    run = Run(network, model, images, chosen, epochs or chosen.epochs, batch or chosen.batch, seed)
    if resume:
        run.resume(checkpoint)
    output.mkdir(parents=True, exist_ok=True)
    if not _trained(run, output):
        note(f"Stopped after step {run.step} of {run.steps}; --resume goes on from {checkpoint}.")
        raise typer.Exit(130)
    result: dict[str, Any] = run.settings() | {"log": run.log, "test_accuracy": run.log[-1]["test_accuracy"]}
    result["output"] = None if method == "1-bit" else str(_write_model(run, output / MODEL))
    text = f"Test accuracy {run.log[-1]['test_accuracy']:.2f} % after {run.epochs} epochs; the log is {output / LOG}."
    written = "A 1-bit network has no codebook to pack." if method == "1-bit" else f"Wrote {output / MODEL}."
    show(result, text, written, as_json=json)


def _trained(run: Run, output: Path) -> bool:
    """Makes the steps; whether all were made, or Ctrl-C came between."""
    with working(f"Training {run.network}", run.steps) as stepped, _interrupts() as interrupted:
        for _ in range(run.step):
            stepped()
        for step in run.train():
            stepped()
            at_end = step % run.steps_per_epoch == 0
            if at_end or interrupted():
                run.save(output / CHECKPOINT)
            if at_end:
                _write_log(run, output / LOG)
                row = run.log[-1]
                note(
                    f"epoch {row['epoch']} of {run.epochs}: loss {row['loss']:.4f}, "
                    f"training {row['train_accuracy']:.2f} %, test {row['test_accuracy']:.2f} %"
                )
            if interrupted() and step < run.steps:
                return False
    return True


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits for the end of a step: gives what says whether it came."""
    came = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


def _write_log(run: Run, path: Path) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, run.log[0].keys())
        writer.writeheader()
        writer.writerows(run.log)


def _write_model(run: Run, path: Path) -> Path:
    """The trained network with sub-bit layers, verified on test images."""
    from subbit_infer.conversion.model import convert
    from subbit_infer.formats import save
    from subbit_infer.training import finish

    example = run.inputs(run.images.test[:8])
    with working("Converting"):
        converted, _ = convert(finish(run.model).eval(), example, verify=True)
        save(converted, path)
    return path
