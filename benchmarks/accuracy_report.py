"""Writes docs/accuracy.md from the runs of accuracy.py: ``python benchmarks/accuracy_report.py [--runs FOLDER]``.

Beside it docs/accuracy.json, every run's figures, and docs/figures/accuracy.png.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

from accuracy import SEEDS, SUBBIT, TAUS, settings

DOCS = Path(__file__).resolve().parent.parent / "docs"
NAMES = {
    "float": "float", "1-bit": "1-bit", "clustered": "clustered (ours)", "snn": "SNN", "vanilla": "Vanilla-SNN",
    "baseline-a": "Baseline A", "baseline-b": "Baseline B", "baseline-b10": "Baseline B-10",
}  # fmt: skip
PAPER_TABLE_8 = {"snn": 63.4, "vanilla": 62.8, "baseline-a": 60.5, "baseline-b": 62.7, "baseline-b10": 62.5}
"""Supplement, Table 8: top-1 on ImageNet, ResNet-18, 0.56/32."""

INTRODUCTION = """# Accuracy

Written by `python benchmarks/accuracy_report.py` from the runs of `python benchmarks/accuracy.py`; nothing is typed by
hand. Every method trains the same ResNet-8 (`subbit_infer.models.resnet8`: a first convolution, six 3x3 layers that
are trained sub-bit, a linear layer) on Fashion-MNIST's 60,000 images for five epochs by the paper's recipe (SGD 0.1,
momentum 0.9, weight decay 1e-4, cosine, batch 256, images mirrored at random), and is tested on its 10,000 test images.
Each seed draws the network, the codebooks and the order of images anew. Figures are per cent of test images that are
classified right.
"""


def read(folder: Path) -> list[dict[str, Any]]:
    """The runs' results."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def accuracies(runs: Iterable[dict[str, Any]], method: str, tau: int, bits: int) -> list[float]:
    """Of the seeds, in order. Methods without codebooks have no tau."""
    has_codebook = method in SUBBIT
    found = [
        run for run in runs
        if (run["method"], run["activation_bits"]) == (method, bits) and (not has_codebook or run["tau"] == tau)
    ]  # fmt: skip
    return [run["accuracy"] for run in sorted(found, key=lambda run: int(run["seed"]))]


def table(runs: Sequence[dict[str, Any]], tau: int, bits: int) -> str:
    """Methods of one setting, the best first."""
    rows = []
    for method in NAMES:
        found = accuracies(runs, method, tau, bits)
        if found:
            rows.append((statistics.mean(found), method, found))
    lines = ["| method | mean | deviation | seeds | paper, ImageNet |", "| :--- | ---: | ---: | :--- | ---: |"]
    for mean, method, found in sorted(rows, reverse=True):
        deviation = f"{statistics.stdev(found):.2f}" if len(found) > 1 else ""
        paper = PAPER_TABLE_8.get(method, "") if (tau, bits) == (5, 32) else ""
        each = ", ".join(f"{value:.2f}" for value in found)
        lines.append(f"| {NAMES[method]} | {mean:.2f} | {deviation} | {each} | {paper} |")
    return "\n".join(lines)


def verdict(runs: Sequence[dict[str, Any]], tau: int, bits: int) -> str:
    """What the figures say about the paper's order, and about ours."""
    means = {m: statistics.mean(found) for m in NAMES if len(found := accuracies(runs, m, tau, bits)) == len(SEEDS)}
    if not {"1-bit", "clustered", "vanilla"} <= means.keys():
        return ""
    gap = means["1-bit"] - means["vanilla"]
    gained = means["clustered"] - means["vanilla"]
    sentences = [
        f"Vanilla-SNN is {gap:.2f} points below 1-bit; clustered is {means['1-bit'] - means['clustered']:.2f} below, "
        + (f"{100 * gained / gap:.0f} % of the gap closed." if gap > 0 else "and there is no gap to close.")
    ]
    order = [m for m in ("1-bit", "snn", "vanilla", "baseline-a") if m in means]
    for better, worse in itertools.pairwise(order):
        if means[better] < means[worse]:
            difference = means[worse] - means[better]
            sentences.append(
                f"The paper's order does not hold here: {NAMES[worse]} is {difference:.2f} above {NAMES[better]}."
            )
    return " ".join(sentences)


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Every seed's accuracy as a dot and the mean as a line, a panel for each number of activation bits and tau."""
    panels = [(bits, tau) for bits in (32, 1) for tau in TAUS]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey="row")
    for ax, (bits, tau) in zip(axes, panels, strict=True):
        shown = [m for m in NAMES if m != "float" and accuracies(runs, m, tau, bits)]
        for place, method in enumerate(shown):
            found = accuracies(runs, method, tau, bits)
            color = "tab:blue" if method == "clustered" else "black" if method == "1-bit" else "tab:gray"
            ax.plot(found, [place] * len(found), "o", color=color, alpha=0.5, markersize=5)
            ax.plot(statistics.mean(found), place, "|", color=color, markersize=16, markeredgewidth=2)
        ax.set_yticks(range(len(shown)), [NAMES[m] for m in shown])
        ax.set_ylim(len(shown) - 0.5, -0.5)
        ax.set_title(f"tau = {tau} ({tau / 9:.2f} bit), A{bits}", fontsize=10)
        ax.grid(axis="x", alpha=0.3)
        ax.set_xlabel("test accuracy, %")
        ax.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def page(runs: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    parts = [INTRODUCTION, "![Accuracy of every seed](figures/accuracy.png)\n"]
    for bits in (32, 1):
        for tau in TAUS:
            words = "float activations" if bits == 32 else "binary activations"
            parts.append(f"## tau = {tau} ({tau / 9:.2f} bit), {words}\n")
            parts += [table(runs, tau, bits) + "\n", verdict(runs, tau, bits) + "\n"]
    hours = sum(run["seconds"] for run in runs) / 3600
    machines = sorted({run["environment"]["cpu"] for run in runs})
    commits = sorted({run["environment"]["commit"] for run in runs})
    wanted = len(list(settings(quick=False)))
    parts.append(
        f"## How it was made\n\n{len(runs)} of {wanted} runs, {hours:.1f} hours of one core, on {'; '.join(machines)}, "
        f"beside other work; commit{'s' * (len(commits) > 1)} {', '.join(commits)}. Every run's figures are in "
        "[accuracy.json](accuracy.json). The paper's column is its Table 8 (supplement): ResNet-18, ImageNet, 120 "
        "epochs; it shows the order, not the height.\n"
    )
    return "\n".join(part for part in parts if part.strip())


def main(
    runs: Annotated[Path, typer.Option(help="Where accuracy.py left its results.")] = Path("out/accuracy"),
    docs: Annotated[Path, typer.Option(help="Where page and picture go.")] = DOCS,
) -> None:
    """Write the page, the figures and the picture."""
    found = read(runs)
    if not found:
        raise typer.BadParameter(f"no results in {runs}: run benchmarks/accuracy.py first")
    draw(found, docs / "figures" / "accuracy.png")
    (docs / "accuracy.md").write_text(page(found))
    kept = ("method", "tau", "activation_bits", "seed", "accuracy", "log", "seconds", "environment")
    lines = ",\n".join(json.dumps({name: run[name] for name in kept}) for run in found)
    (docs / "accuracy.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    typer.run(main)
