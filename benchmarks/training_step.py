"""What a step of training costs: ``python benchmarks/training_step.py [--network NAME] [--batch N] [--threads N]``.

A step (forward, backward, SGD, ``refine_``) of a network whose body is prepared by each method, against the same step
with plain dense layers, in turns in one process; medians. Then the search for nearest codewords of a 512 x 512 layer
alone, against the backward pass of the layer's convolution.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn import functional as F

from machine import environment
from subbit_infer import models, training
from subbit_infer.ops.assignment import nearest

PLAIN = "plain"
METHODS = {
    "1-bit": training.Config("1-bit"),
    "vanilla, tau 5": training.Config("vanilla", tau=5),
    "snn, tau 5": training.Config("snn", tau=5),
    "clustered, tau 5": training.Config("clustered", tau=5),
    "clustered, tau 8": training.Config("clustered", tau=8),
    "baseline-b, tau 5": training.Config("baseline-b", tau=5),
    "clustered, tau 5, binary activations": training.Config("clustered", tau=5, activation_bits=1),
}
CODEWORDS = (8, 32, 256)


def step_of(network: str, batch: int, config: training.Config | None) -> Callable[[], None]:
    """A step of training on one random batch."""
    bits = 32 if config is None else config.activation_bits
    model: torch.nn.Module = getattr(models, network)(activation_bits=bits).train()
    if config is not None:
        training.prepare(model, config)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    side = 32 if network in ("resnet8", "resnet20", "vgg_small") else 224
    x = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,))

    def step() -> None:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if config is not None:
            training.refine_(model, optimizer)

    return step


def in_turns(calls: dict[str, Callable[[], object]], rounds: int, what: str) -> dict[str, float]:
    """The median seconds of each, after one call of each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in track(range(rounds + 1), what):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def assignment(rounds: int) -> dict[str, float]:
    """The nearest codewords of a 512 x 512 layer's units, and the backward pass of its convolution on 32 x 7 x 7."""
    units = torch.randn(512 * 512, 9)
    x, weight = torch.randn(32, 512, 7, 7, requires_grad=True), torch.randn(512, 512, 3, 3, requires_grad=True)
    y = F.conv2d(x, weight, padding=1)
    given = torch.randn_like(y)
    calls: dict[str, Callable[[], object]] = {
        "backward pass": lambda: torch.autograd.grad(y, (x, weight), given, retain_graph=True)
    }
    for codewords in CODEWORDS:
        codebook = torch.randn(codewords, 9).sign()
        calls[f"{codewords} codewords"] = lambda codebook=codebook: nearest(units, codebook)  # type: ignore[misc]
    return in_turns(calls, 5 * rounds, "assignment")


def main(
    network: Annotated[str, typer.Option(help="A function of subbit_infer.models.")] = "resnet18",
    batch: Annotated[int, typer.Option(help="Images.")] = 32,
    threads: Annotated[int, typer.Option(help="Of torch.")] = 2,
    rounds: Annotated[int, typer.Option(help="Steps that are timed.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Time steps of training, and the assignment."""
    torch.set_num_threads(threads)
    steps: dict[str, Callable[[], object]] = {PLAIN: step_of(network, batch, None)}
    steps |= {name: step_of(network, batch, config) for name, config in METHODS.items()}
    seconds, searches = in_turns(steps, rounds, network), assignment(rounds)
    result: dict[str, Any] = {
        "environment": environment(threads=threads, isa="native"), "network": network, "batch": batch,
        "seconds": seconds, "assignment_seconds": searches,
    }  # fmt: skip
    if as_json:
        print(json.dumps(result, indent=1))
        return
    for title, values, base in (
        (f"A step of {network}, batch {batch}, {threads} threads", seconds, PLAIN),
        ("Nearest codewords, 512 x 512 layer, against its backward pass", searches, "backward pass"),
    ):
        table = Table("", "ms", "ratio", title=title)
        for name, value in values.items():
            table.add_row(name, f"{1e3 * value:.1f}", f"{value / values[base]:.3f}")
        Console().print(table)


if __name__ == "__main__":
    typer.run(main)
