"""Parameters and Bit-OPs of sub-bit networks against 1-bit ones, without and with the first and the last layer.

    python benchmarks/reduction.py --out out/training

prints tables and draws ``reduction.png``, the paper's Figure 12. Nothing is measured: all is counted, by
:mod:`subbit_infer.core.cost`. The first and the last layer are in full precision, so they weigh more the less is left
of the others; VGG-small's last one most, which no global pooling comes before.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.console import Console

import published
from published import Network
from subbit_infer.core.cost import LayerCost, Weights, model_cost
from subbit_infer.core.tables import Table

DPI = 130
TAPS = 9
TAUS = (6, 5, 4)
COLORS = dict(zip(TAUS, ("tab:blue", "tab:orange", "tab:green"), strict=True))
PALE = 0.4  # how opaque the bars with the first and the last layer are

ActivationBits = Literal[1, 32]


@dataclass(frozen=True)
class Quantity:
    """What is counted: its title and unit, the number in a cost, and what a network is called beside it."""

    title: str
    unit: str
    of: Callable[[LayerCost], float]
    label: Callable[[Network], str]
    activation_bits: tuple[ActivationBits, ...]  # those that it depends on


PARAMETERS = Quantity("Parameters", "Mbit", lambda cost: cost.parameters / 1e6, lambda network: network.name, (32,))
BIT_OPS = Quantity(
    "Bit-OPs, where an addition costs g",
    "G",
    lambda cost: cost.bit_ops / 1e9,
    lambda network: f"{network.name}, g = {network.add_cost:g}",
    (1, 32),
)


def count(network: Network, weights: Weights, activation_bits: ActivationBits) -> tuple[LayerCost, LayerCost]:
    """What a network costs without and with its first and last layer; tau is that of 3x3 and of 1x1 layers."""

    def cost(first_and_last: bool) -> LayerCost:
        return model_cost(
            network.shapes,
            weights=weights,
            activation_bits=activation_bits,
            add_cost=network.add_cost,
            first_and_last=first_and_last,
        )

    return cost(False), cost(True)


def reductions(network: Network, tau: int, activation_bits: ActivationBits, quantity: Quantity) -> tuple[float, float]:
    """How many times less than the 1-bit network's, without and with the first and the last layer."""
    binary, subbit = (count(network, weights, activation_bits) for weights in ("binary", tau))
    body, whole = (quantity.of(ours) / quantity.of(theirs) for ours, theirs in zip(binary, subbit, strict=True))
    return body, whole


def table(networks: list[Network], quantity: Quantity) -> Table:
    """Every network at every number of bits."""
    headings = ["network", "W/A", "body", "1-bit : body", "whole", "1-bit : whole"]
    rows = [row for network in networks for row in _rows(network, quantity)]
    return Table(headings, rows, right=headings[2:])


def _rows(network: Network, quantity: Quantity) -> Iterator[list[str]]:
    def row(bits: str, weights: Weights, activation_bits: ActivationBits, times: tuple[str, str]) -> list[str]:
        body, whole = (f"{quantity.of(cost):#.4g}" for cost in count(network, weights, activation_bits))
        return [quantity.label(network), f"{bits}/{activation_bits}", body, times[0], whole, times[1]]

    yield row("32", "full", 32, ("", ""))
    for activation_bits in quantity.activation_bits:
        yield row("1", "binary", activation_bits, ("", ""))
        for tau in TAUS:
            bits, _ = reductions(network, tau, activation_bits, PARAMETERS)  # 1-bit : sub-bit, of 3x3 and 1x1 together
            body, whole = reductions(network, tau, activation_bits, quantity)
            yield row(f"{1 / bits:.2f}", tau, activation_bits, (f"{body:.2f}x", f"{whole:.2f}x"))


def draw(networks: list[Network]) -> Figure:
    """How many times less than the 1-bit network's, with float activations as in the paper."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle("Reduction against 1-bit networks on CIFAR-10, float activations, as counted", fontsize=11)
    for number, quantity in enumerate((PARAMETERS, BIT_OPS), start=1):
        axes = figure.add_subplot(1, 2, number)
        _bars(axes, networks, quantity)
        axes.set_title(quantity.title, fontsize=10)
        axes.set_ylabel("1-bit network : sub-bit network")
    handles = [Patch(color=COLORS[tau], label=f"tau = {tau}, {tau / TAPS:.2f} bit in 3x3 layers") for tau in TAUS]
    handles += [
        Patch(color="dimgray", label="without the first and the last layer"),
        Patch(color="dimgray", alpha=PALE, label="with them, in full precision"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    return figure


def _bars(axes: Axes, networks: list[Network], quantity: Quantity) -> None:
    width = 0.86 / (2 * len(TAUS))
    for group, network in enumerate(networks):
        for place, tau in enumerate(TAUS):
            for side, times in enumerate(reductions(network, tau, 32, quantity)):
                x = group + (2 * place + side - len(TAUS) + 0.5) * width
                bar = axes.bar(x, times, 0.94 * width, color=COLORS[tau], alpha=PALE if side else 1)
                axes.bar_label(bar, fmt="%.2f", fontsize=7, padding=1)
    axes.set_xticks(range(len(networks)), [quantity.label(network) for network in networks])
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Counts and draws what sub-bit networks save.")
    parser.add_argument("--out", type=Path, required=True, help="folder of reduction.png; made if need be")
    folder: Path = parser.parse_args().out
    networks = [published.resnet18(), published.resnet50(), published.vgg_small()]
    console = Console()
    for quantity in (PARAMETERS, BIT_OPS):
        console.print(f"{quantity.title} ({quantity.unit})", table(networks, quantity))
    folder.mkdir(parents=True, exist_ok=True)
    draw(networks).savefig(folder / "reduction.png", dpi=DPI)


if __name__ == "__main__":
    main()
