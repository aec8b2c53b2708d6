"""Trained networks on labelled images: what accuracy is left at 0.56 bits per weight.

    python examples/fashion.py        # or, beside speed and size: make demo

A ResNet-8 (``subbit_infer.models.resnet8``) that benchmarks/accuracy.py trained on Fashion-MNIST for five epochs, in
float, with 1-bit weights and at 0.56 bit (tau = 5), with float and with binary activations, classifies the first 2,000
test images. The files in examples/fashion-mnist say of themselves how they were trained, and how accurate they are on
all 10,000 test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from matplotlib.figure import FigureBase
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import subbit_infer
from subbit_infer import formats, models
from subbit_infer.training.data import read_idx

FOLDER = Path(__file__).parent / "fashion-mnist"
CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FILES = {
    "float": "w32-a32", "1-bit": "w1-a32", "sub-bit": "w0.56-a32",
    "1-bit, binary activations": "w1-a1", "sub-bit, binary activations": "w0.56-a1",
}  # fmt: skip
SHOWN = 12  # images in the picture, the first of each class and the first that are classified wrong
BITS_PER_WEIGHT = {"w32": 32.0, "w1": 1.0, "w0.56": 5 / 9}


@dataclass(frozen=True)
class Trained:
    """A network and what it says of the images.

    Attributes:
        name: in words.
        title: the paper's: bits per weight over bits per activation.
        body_bytes: of the six 3x3 layers' weights.
        notes: what its file says of it.
        predictions: int64 (N,).
        right: how many of them are.
    """

    name: str
    title: str
    body_bytes: float
    notes: dict[str, str]
    predictions: Tensor
    right: int


def load_images() -> tuple[Tensor, Tensor]:
    """The first 2,000 test images of Fashion-MNIST, uint8 (N, 1, 28, 28), and their labels, int64 (N,)."""
    images, labels = (read_idx(FOLDER / f"t10k-{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1"))
    return images[:, None], labels.long()


def load_network(file: str, example: Tensor) -> tuple[nn.Module, dict[str, str]]:
    """A network ready to run, and the notes of its file. Sub-bit ones are in the package's format, and are folded."""
    path = FOLDER / f"{file}.safetensors"
    model = models.resnet8(activation_bits=1 if file.endswith("a1") else 32, in_channels=1)
    if file.startswith("w0.56"):
        loaded = subbit_infer.load(path, model)
        return subbit_infer.convert(loaded, example, fold=True).model, formats.inspect(path).notes
    with safetensors.safe_open(path, "pt") as tensors:
        model.load_state_dict({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118 -- no dict
        return model.float().eval(), tensors.metadata()


@torch.inference_mode()
def classify_all() -> list[Trained]:
    """Every network on every image."""
    images, labels = load_images()
    found = []
    for name, file in FILES.items():
        model, notes = load_network(file, torch.zeros(2, 1, 28, 28))
        inputs = (images.float() / 255 - float(notes["mean"])) / float(notes["deviation"])
        predictions = model(inputs).argmax(1)
        weights = sum(conv.weight.numel() for _, conv in models.body_convs(models.resnet8()))
        bits = BITS_PER_WEIGHT[file.split("-")[0]]
        title = f"{file.split('-')[0].upper()}/{file.split('-')[1].upper()}"
        right = int((predictions == labels).sum())
        found.append(Trained(name, title, weights * bits / 8, notes, predictions, right))
    return found


def table(found: list[Trained]) -> Table:
    """A row per network."""
    result = Table(
        title="Trained on Fashion-MNIST: ResNet-8", title_justify="left", title_style="bold", box=SIMPLE_HEAD
    )
    result.add_column("network")
    result.add_column("")
    for heading in ("kB of 3x3 weights", "right of 2,000", "all 10,000"):
        result.add_column(heading, justify="right")
    for one in found:
        share = f"{one.right}  {100 * one.right / len(one.predictions):.1f} %"
        result.add_row(one.name, one.title, f"{one.body_bytes / 1e3:.1f}", share, one.notes["accuracy"])
    return result


def draw(figure: FigureBase, found: list[Trained]) -> None:
    """Some images with what the sub-bit networks say; wrong answers in red."""
    images, labels = load_images()
    float32, binary = (next(one for one in found if one.title == title) for title in ("W0.56/A32", "W0.56/A1"))
    firsts = [int((labels == label).nonzero()[0]) for label in range(len(CLASSES))]
    wrong = (float32.predictions != labels).nonzero().flatten().tolist()
    chosen = (firsts + [number for number in wrong if number not in firsts])[:SHOWN]
    for ax, number in zip(figure.subplots(1, SHOWN), chosen, strict=True):
        ax.imshow(images[number, 0], cmap="gray_r")
        ax.set_axis_off()
        for row, (one, bits) in enumerate(((float32, "A32"), (binary, "A1"))):
            answer, label = int(one.predictions[number]), int(labels[number])
            text = f"{bits}: {CLASSES[answer]}"
            ax.text(0.5, -0.08 - 0.17 * row, text, transform=ax.transAxes, ha="center", va="top", fontsize=7,
                    color="black" if answer == label else "tab:red")  # fmt: skip
    accuracy = {one.title: 100 * one.right / len(one.predictions) for one in found}
    words = ", ".join(f"{title} {value:.1f} %" for title, value in accuracy.items())
    figure.suptitle(f"Fashion-MNIST by trained networks (the first 2,000 test images): {words}", fontsize=10)


if __name__ == "__main__":
    Console().print(table(classify_all()))
