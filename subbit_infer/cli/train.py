"""``subbit train``: a network and a data set in, a trained sub-bit network out."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import nn

import subbit_infer
from subbit_infer.cli.screen import Json, UsageError, note, show, working
from subbit_infer.cli.sources import Device, device_of
from subbit_infer.cli.tensorboard import scalars
from subbit_infer.core.atomic import replacing

if TYPE_CHECKING:
    from subbit_infer.training.data import Images
    from subbit_infer.training.run import Run

CHECKPOINT, LOG, MODEL = "checkpoint.safetensors", "log.csv", "model.safetensors"


def train(
    network: Annotated[
        str, typer.Argument(help="resnet8, resnet20, resnet18, resnet34, resnet50, vgg-small or reactnet18.")
    ],
    data: Annotated[Path, typer.Option(help="Folder of IDX files, CIFAR's binary files, or train/CLASS/*.png.")],
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoint, log and model; made if need be.")],
    method: Annotated[
        str, typer.Option(help="1-bit, vanilla, snn, baseline-a, -b, -b10 or clustered; or float, for a teacher.")
    ] = "clustered",
    tau: Annotated[int, typer.Option(help="Bits per index: 2^tau codewords per layer.")] = 5,
    activation_bits: Annotated[int, typer.Option(help="32, or 1 for binary activations.")] = 32,
    recipe: Annotated[str, typer.Option(help="paper or two-stage.")] = "paper",
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; the recipe's.", show_default=False)] = None,
    batch: Annotated[int | None, typer.Option(help="Images per step; the recipe's.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of weights, codebooks and the order of images.")] = 0,
    teacher: Annotated[
        Path | None, typer.Option(help="Run of method float whose answers are learnt in the labels' place.")
    ] = None,
    start: Annotated[Path | None, typer.Option(help="Run of the same network that the weights begin from.")] = None,
    device: Device = "cpu",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write each epoch's figures for it too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    json: Json = False,
) -> None:
    """Train a sub-bit network (or a 1-bit or float one) on labelled images.

    Ctrl-C ends after the current step and leaves a checkpoint; --resume goes on from it, to the same bits.
    Under torchrun all processes train together, each on its share of --batch.
    """
    from subbit_infer.training import data as data_sets
    from subbit_infer.training import ranks
    from subbit_infer.training.checkpoints import load_weights
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
    place = _device(device)
    images = data_sets.load(data)
    model = _network(network, activation_bits, images, seed)
    if start is not None:
        load_weights(_checkpoint_of(start), model)
    taught_by = None if teacher is None else _teacher(_checkpoint_of(teacher), images)
    with ranks.joined(place):
        run = Run(
            network, model, images, chosen, epochs or chosen.epochs, batch or chosen.batch, seed,
            device=place, teacher=taught_by,
        )  # fmt: skip
        if resume:
            run.resume(checkpoint)
        is_done = _trained(run, output, tensorboard=tensorboard)
        if ranks.rank() == 0:
            if is_done:
                _report(run, output, method, as_json=json)
            else:
                note(f"Stopped after step {run.step} of {run.steps}; --resume goes on from {checkpoint}.")
    if not is_done:
        raise typer.Exit(130)


def _device(text: str) -> torch.device:
    """Where this process trains: of several under torchrun, each on the CUDA device of its number.

    Raises:
        UsageError: there is no such device here, or it would be that of all of them.
    """
    if "LOCAL_RANK" in os.environ and text.startswith("cuda"):
        if text != "cuda":
            raise UsageError(f"--device must be cpu or cuda under torchrun, got {text!r}")
        return device_of(f"cuda:{os.environ['LOCAL_RANK']}")
    return device_of(text)


def _checkpoint_of(run: Path) -> Path:
    return run / CHECKPOINT if run.is_dir() else run


def _teacher(path: Path, images: Images) -> nn.Module:
    """The float network that a run ended with, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or one of another method, of other images, or of a run that is not finished.
    """
    from subbit_infer.training.checkpoints import load_weights, read_run

    asked = read_run(path)
    recipe = asked.get("recipe")
    config = recipe.get("config") if isinstance(recipe, dict) else None
    given = (config.get("method"), config.get("activation_bits")) if isinstance(config, dict) else None
    if given != ("float", 32):
        raise ValueError(
            f"{path} must be of a run of method 'float' with 32 activation bits to be a teacher, got {given}"
        )
    model = _network(str(asked.get("network")), 32, images, seed=0)
    load_weights(path, model)
    return model.eval()


def _network(name: str, activation_bits: int, images: Images, seed: int) -> nn.Module:
    """A network of this package for these images.

    Raises:
        UsageError: there is no such network, or it is not for these activations or images.
    """
    from subbit_infer.models import network_of

    _, channels, height, width = images.train.shape
    try:
        return network_of(name, activation_bits, len(images.classes), channels, (height, width), seed)
    except ValueError as error:  # what does not go together, all of it from the command line
        raise UsageError(str(error)) from error


def _trained(run: Run, output: Path, *, tensorboard: bool) -> bool:
    """Makes the steps, of which rank 0 keeps the books; whether all were made, or Ctrl-C came between."""
    from subbit_infer.training import ranks

    is_first = ranks.rank() == 0
    with ExitStack() as stack:
        stepped: Callable[[], None] = _nothing
        written: Callable[[Mapping[str, float]], None] = _nothing
        if is_first:
            stepped = stack.enter_context(working(f"Training {run.network}", run.steps))
            if tensorboard:
                written = stack.enter_context(scalars(output))
            output.mkdir(parents=True, exist_ok=True)
        interrupted = stack.enter_context(_interrupts())
        for _ in range(run.step):
            stepped()
        for step in run.train():
            stepped()
            at_end = step % run.steps_per_epoch == 0
            stops = ranks.any_of(interrupted(), run.device)  # Ctrl-C reaches them at different steps
            if is_first and (at_end or stops):
                run.save(output / CHECKPOINT)
            if is_first and at_end:
                _write_log(run, output / LOG)
                row = run.log[-1]
                written(row)
                note(
                    f"epoch {row['epoch']} of {run.epochs}: loss {row['loss']:.4f}, "
                    f"training {row['train_accuracy']:.2f} %, test {row['test_accuracy']:.2f} %"
                )
            if stops and step < run.steps:
                return False
    return True


def _nothing(*_: object) -> None:
    """What is called in the place of what only rank 0 does."""


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


def _report(run: Run, output: Path, method: str, *, as_json: bool) -> None:
    """Writes the model, where there is a codebook to pack, and shows what came of the run."""
    result: dict[str, Any] = run.settings() | {"log": run.log, "test_accuracy": run.log[-1]["test_accuracy"]}
    is_plain = method in ("1-bit", "float")
    result["output"] = None if is_plain else str(_write_model(run, output / MODEL))
    text = f"Test accuracy {run.log[-1]['test_accuracy']:.2f} % after {run.epochs} epochs; the log is {output / LOG}."
    written = f"A {method} network has no codebook to pack." if is_plain else f"Wrote {output / MODEL}."
    show(result, text, written, as_json=as_json)


def _write_model(run: Run, path: Path) -> Path:
    """The trained network with sub-bit layers, verified on test images."""
    from subbit_infer.conversion.model import convert
    from subbit_infer.formats import save
    from subbit_infer.training import finish

    example = run.inputs(run.images.test[:8]).cpu().contiguous()
    model = run.model.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with working("Converting"):
        converted, _ = convert(finish(model).eval(), example, verify=True)
        save(converted, path, _notes(run))
    return path


def _notes(run: Run) -> dict[str, str]:
    """What the model's file says of the run."""
    config = run.recipe.config
    return {
        "accuracy": f"{run.log[-1]['test_accuracy']:.2f} % of {len(run.images.test)} test images",
        "network": run.network,
        "method": config.method,
        "activation_bits": str(config.activation_bits),
        "images": str(len(run.images.train)),
        "epochs": str(run.epochs),
        "seed": str(run.seed),
        "subbit_infer": subbit_infer.__version__,
    }
