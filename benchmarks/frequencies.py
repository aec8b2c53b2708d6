"""How a layer's kernels are used as training goes on, the paper's Figure 11: ``python benchmarks/frequencies.py``.

ResNet-20 on Fashion-MNIST by the paper's recipe: 1-bit, SNN with subset refinement at 0.67, 0.56 and 0.44 bit, and our
method. Drawn is the share of each of the 512 kernels among a layer's units, after a growing number of steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure
from rich.progress import Progress

from accuracy import FASHION_MNIST
from subbit_infer import models
from subbit_infer.core.bits import numbers_of_bits
from subbit_infer.training import data, prepared_layers
from subbit_infer.training.recipes import T_MIN, recipe
from subbit_infer.training.run import Run

NETWORK, BATCH, KERNELS = "resnet20", 256, 512
ROWS = (("1-bit", 9), ("snn", 6), ("snn", 5), ("snn", 4), ("clustered", 5))
LAYERS = {"layer1.2.conv2": "16 channels", "layer2.2.conv2": "32 channels", "layer3.2.conv2": "64 channels"}
TIMES = 6  # that are drawn, the start among them


def shares(run: Run) -> dict[str, torch.Tensor]:
    """Of each of the layers: the share of its units that each kernel has, (512,)."""
    found = {}
    for name, layer, _ in prepared_layers(run.model):
        if name in LAYERS:
            units = layer.weight.detach().reshape(-1, 9) > 0
            numbers = numbers_of_bits(units.flip(1))  # the paper's numbers: the first tap is the most significant bit
            found[name] = torch.bincount(numbers, minlength=KERNELS) / len(units)
    return found


def main(
    source: Annotated[Path, typer.Option("--data", help="Folder of the data set.")] = FASHION_MNIST,
    image: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("out/frequencies.png"),
    steps: Annotated[int, typer.Option(help="Of training, at most an epoch's.")] = 200,
) -> None:
    """Train and draw."""
    images = data.load(source)
    images = images._replace(train=images.train[: steps * BATCH], train_labels=images.train_labels[: steps * BATCH])
    figure = Figure(figsize=(12, 2.1 * len(ROWS)), layout="constrained")
    axes = figure.subplots(len(ROWS), len(LAYERS), sharex=True, squeeze=False)
    with Progress() as progress:
        bar = progress.add_task("Training", total=len(ROWS) * steps)
        for row, (method, tau) in enumerate(ROWS):
            changes = {} if method == "1-bit" else {"tau": tau}
            chosen = recipe("paper", method=method, t_min=T_MIN[NETWORK], **changes)
            model = models.resnet20(in_channels=images.train.shape[1]).train()
            run = Run(NETWORK, model, images, chosen, 1, BATCH, crop=False)
            seen = [shares(run)]
            for step in run.train():
                progress.advance(bar)
                if step * (TIMES - 1) // steps > (step - 1) * (TIMES - 1) // steps:
                    seen.append(shares(run))
            for ax, (name, channels) in zip(axes[row], LAYERS.items(), strict=True):
                picture = torch.stack([moment[name] for moment in seen]).sqrt()
                ax.imshow(picture, aspect="auto", cmap="magma_r", interpolation="nearest", origin="upper")
                ax.set_yticks([0, TIMES - 1], ["start", f"step {steps}"])
                bits = 1.0 if method == "1-bit" else tau / 9
                ax.set_title(f"{method}, {bits:.2f} bit, {name} ({channels})", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("index of the kernel, 0 to 511")
    figure.suptitle("How often each kernel occurs as training goes on (darker: more often; root of the share)")
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=90)
    typer.echo(f"Picture: {image}")


if __name__ == "__main__":
    typer.run(main)
