"""A sub-bit ResNet-18 on a photograph, against the same network dense in PyTorch.

    make demo        # or: python examples/demo.py --threads 2 --json out/demo.json

The sixteen 3x3 layers hold 0.56 bits per weight (tau = 5: 32 distinct kernels per layer). Both networks compute the
same function. The demo first checks that they do, each layer on its true input and then the networks as a whole, and
only then measures. It prints a table for float activations (W0.56/A32) and one for binary activations (W0.56/A1), draws
the speed-ups to out/demo.png, and exits with status 1 if an output differs by more than the stated bound.

The ResNet-18's weights are random and the photograph sets the BatchNorm statistics: neither speed nor equality depends
on what a network has learnt, and the class that comes out means nothing. Accuracy is that of small trained networks on
labelled images: see fashion.py.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure, FigureBase
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import fashion
from photographs import SIDE, photographs
from subbit_infer import convert
from subbit_infer.backends import native
from subbit_infer.models import body_convs, calibrate, make_subbit_weights, resnet18, to_subbit

TAU = 5
WARM_UP = 3

# Largest differences allowed, relative to the largest output, by activation bits. Float: both sides add up to 4608
# float32 terms, each in its own order, sqrt(4608) * 2^-24 = 4e-6 of a typical sum; one wrong tap would show as about
# 1e-2. Binary: every sum is exact on both sides (see make_subbit_weights), so the bits must be the same.
LAYER_BOUNDS = {32: 1e-5, 1: 0.0}
LOGIT_BOUNDS = {32: 1e-4, 1: 1e-4}  # a folded BatchNorm rounds elsewhere

HOW_MEASURED = (
    "Dense is the better of contiguous and channels_last. Medians of runs in turns, each timed straight after {}. "
    "A1: the dense layer is handed its signs, the sub-bit layer takes them itself.\n"
)
WARM = "an untimed run of the same, so with warm caches"
COLD = "a run of the others, so with cold caches"


@dataclass(frozen=True)
class Case:
    """One convolution of the dense network, its input there, and the sub-bit layer that replaces it."""

    name: str
    dense: nn.Conv2d
    subbit: nn.Module
    x: Tensor
    convolved: Tensor  # x, or its signs where activations are binary

    def run_dense(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolves as the dense layer does."""
        return F.conv2d(x, weight, None, self.dense.stride, self.dense.padding)

    @property
    def shape(self) -> str:
        """Channels, input size and stride."""
        stride = "" if self.dense.stride == (1, 1) else f" /{self.dense.stride[0]}"
        return f"{self.dense.in_channels}→{self.dense.out_channels} {self.x.shape[-1]}²{stride}"


@dataclass(frozen=True)
class Networks:
    """A dense network and its sub-bit form for one kind of activations, and the images they see.

    The sub-bit network is folded: BatchNorms, activations and shortcuts are in the convolutions' epilogues.
    """

    activation_bits: int
    dense: nn.Module
    subbit: nn.Module
    images: Tensor  # the first one is the one to time
    cases: list[Case]

    @property
    def title(self) -> str:
        """The paper's name: bits per weight over bits per activation."""
        return f"W{TAU / 9:.2f}/A{self.activation_bits}"


@dataclass(frozen=True)
class Difference:
    """The largest difference of two outputs, and the same relative to the largest output."""

    absolute: float
    relative: float


@dataclass(frozen=True)
class Times:
    """Milliseconds of the same work: dense PyTorch in its better layout, and sub-bit."""

    dense: float
    subbit: float

    @property
    def speedup(self) -> float:
        """Dense over sub-bit."""
        return self.dense / self.subbit


@dataclass(frozen=True)
class Size:
    """Bytes of the body's weights, scales included."""

    dense: int
    one_bit: int
    subbit: int


@dataclass(frozen=True)
class Outcome:
    """What was found out about one pair of networks."""

    title: str
    layers: list[tuple[Case, Difference, Times]]
    logits: Difference
    same_class: int
    images: int
    network: Times
    size: Size

    @property
    def body(self) -> Times:
        """The sum over the layers, each dense one in its own better layout."""
        return Times(sum(t.dense for _, _, t in self.layers), sum(t.subbit for _, _, t in self.layers))


def make_networks(activation_bits: int) -> Networks:
    """The dense network with sub-bit weights, its twin, and every body convolution with its input."""
    images = photographs()
    dense = resnet18(activation_bits)
    make_subbit_weights(dense, TAU)
    calibrate(dense, images[:1])
    subbit = to_subbit(dense)
    cases = make_cases(dense, subbit, images[:1], activation_bits)
    return Networks(activation_bits, dense, convert(dense, images[:1], fold=True).model, images, cases)


def make_cases(dense: nn.Module, subbit: nn.Module, image: Tensor, activation_bits: int) -> list[Case]:
    """Runs the dense network once and keeps what each body convolution was given."""
    cases = []

    def keep(name: str, conv: nn.Conv2d, x: Tensor) -> None:
        convolved = x.sign() if activation_bits == 1 else x.clone()
        cases.append(Case(name, conv, subbit.get_submodule(name), x.clone(), convolved))

    hooks = [
        conv.register_forward_pre_hook(lambda conv, args, name=name: keep(name, conv, args[0]))
        for name, conv in body_convs(dense)
    ]
    with torch.inference_mode():
        dense(image)
    for hook in hooks:
        hook.remove()
    return cases


def difference(expected: Tensor, actual: Tensor) -> Difference:
    """Compares two outputs."""
    absolute = (expected - actual).abs().max().item()
    return Difference(absolute, absolute / expected.abs().max().item())


def check(what: str, found: Difference, bound: float) -> Difference:
    """Ends the demo with status 1 if the difference is over the bound (or not a number)."""
    if not found.relative <= bound:
        sys.exit(
            f"FAILED: {what}: sub-bit and dense outputs differ by {found.absolute:.3g}, {found.relative:.1e} of the "
            f"largest output; at most {bound:g} is allowed"
        )
    return found


def check_layers(networks: Networks) -> list[Difference]:
    """Compares every layer with its dense twin on the layer's true input."""
    bound = LAYER_BOUNDS[networks.activation_bits]
    differences = []
    for case in networks.cases:
        found = difference(case.run_dense(case.convolved, case.dense.weight), case.subbit(case.x))
        differences.append(check(f"{networks.title} {case.name}", found, bound))
    return differences


def check_networks(networks: Networks) -> tuple[Difference, int]:
    """Compares the logits; also counts the images that both networks give the same class."""
    expected, actual = networks.dense(networks.images), networks.subbit(networks.images)
    bound = LOGIT_BOUNDS[networks.activation_bits]
    found = check(f"{networks.title} logits", difference(expected, actual), bound)
    return found, int((expected.argmax(1) == actual.argmax(1)).sum())


class Timing(NamedTuple):
    """How often to measure, and whether with cold caches."""

    rounds: int
    cold: bool


def medians(runs: list[Callable[[], Any]], timing: Timing) -> list[float]:
    """Median milliseconds of each run.

    They take turns, so that all meet the same weather on the machine. A turn is one run that is not timed, to have the
    caches hold this run's data and not the last one's (unless they are to be cold), and one that is.
    """
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(WARM_UP + timing.rounds):
        for run, taken in zip(runs, times, strict=True):
            if not timing.cold:
                run()
            start = time.perf_counter()
            run()
            taken.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(taken[WARM_UP:]) for taken in times]


def time_layer(case: Case, timing: Timing) -> Times:
    """Times one layer. The dense one is handed its signs; the sub-bit one has to take them itself."""
    last = torch.channels_last
    x, weight = case.convolved, case.dense.weight
    x_last, weight_last = x.to(memory_format=last), weight.to(memory_format=last)
    contiguous, channels_last, subbit = medians(
        [lambda: case.run_dense(x, weight), lambda: case.run_dense(x_last, weight_last), lambda: case.subbit(case.x)],
        timing,
    )
    return Times(min(contiguous, channels_last), subbit)


def time_networks(networks: Networks, timing: Timing) -> Times:
    """Times the whole networks on one image."""
    image = networks.images[:1]
    image_last = image.contiguous(memory_format=torch.channels_last)
    dense_last = copy.deepcopy(networks.dense).to(memory_format=torch.channels_last)
    contiguous, channels_last, subbit = medians(
        [lambda: networks.dense(image), lambda: dense_last(image_last), lambda: networks.subbit(image)], timing
    )
    return Times(min(contiguous, channels_last), subbit)


def measure_size(cases: list[Case]) -> Size:
    """The body's weights: as float32, at one bit each with a scale an output channel, and sub-bit."""
    weights = [case.dense.weight for case in cases]
    subbit = sum(buffer.nbytes for case in cases for buffer in case.subbit.buffers())
    return Size(
        dense=sum(weight.nbytes for weight in weights),
        one_bit=sum(weight.numel() // 8 + 4 * weight.shape[0] for weight in weights),
        subbit=subbit,
    )


@torch.inference_mode()
def investigate(networks: Networks, timing: Timing, progress: Progress) -> Outcome:
    """Checks and then measures."""
    task = progress.add_task(f"{networks.title}: check", total=len(networks.cases) + 1)
    differences = check_layers(networks)
    logits, same_class = check_networks(networks)
    times = []
    for case in networks.cases:
        progress.update(task, description=f"{networks.title}: {case.name}", refresh=True)
        times.append(time_layer(case, timing))
        progress.advance(task)
    progress.update(task, description=f"{networks.title}: network", refresh=True)
    network = time_networks(networks, timing)
    progress.update(task, advance=1, refresh=True)
    return Outcome(
        title=networks.title,
        layers=list(zip(networks.cases, differences, times, strict=True)),
        logits=logits,
        same_class=same_class,
        images=len(networks.images),
        network=network,
        size=measure_size(networks.cases),
    )


def time_cells(times: Times) -> tuple[str, str, str]:
    """Dense, sub-bit, speed-up."""
    return f"{times.dense:.3f}", f"{times.subbit:.3f}", f"{times.speedup:.2f}x"


def difference_cells(found: Difference) -> tuple[str, str]:
    """Absolute, relative."""
    return f"{found.absolute:.2g}", f"{found.relative:.2g}"


def table(outcome: Outcome) -> Table:
    """The layers one by one, their sum, and the network."""
    result = Table(
        title=f"ResNet-18, {outcome.title}: milliseconds, batch 1",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in ("3x3 layer", "channels, side"):
        result.add_column(heading, no_wrap=True)
    for heading in ("dense", "sub-bit", "speed-up", "max diff", "relative"):
        result.add_column(heading, justify="right", no_wrap=True)
    for case, found, times in outcome.layers:
        result.add_row(case.name, case.shape, *time_cells(times), *difference_cells(found))
    result.add_section()
    result.add_row("16 layers", "", *time_cells(outcome.body), style="bold")
    result.add_row("whole network", "", *time_cells(outcome.network), *difference_cells(outcome.logits), style="bold")
    return result


def summary(outcome: Outcome) -> str:
    """Agreement and size in words."""
    size = outcome.size
    return (
        f"Same class on {outcome.same_class} of {outcome.images} images. Size of the 16 layers: dense "
        f"{size.dense / 1e6:.2f} MB, 1-bit {size.one_bit / 1e6:.3f} MB, sub-bit {size.subbit / 1e6:.3f} MB "
        f"({size.dense / size.subbit:.1f}x and {size.one_bit / size.subbit:.2f}x smaller).\n"
    )


def draw(outcomes: list[Outcome], trained: list[fashion.Trained], path: Path) -> None:
    """Draws the speed-ups, and images with what trained networks say of them."""
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[4.8, 1.8])
    draw_speedups(upper, outcomes)
    fashion.draw(lower, trained)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def draw_speedups(figure: FigureBase, outcomes: list[Outcome]) -> None:
    """Bars: the layers, their sum, the network."""
    labels = [case.name for case, _, _ in outcomes[0].layers] + ["16 layers", "network"]
    axes = figure.add_subplot()
    width = 0.8 / len(outcomes)
    for number, outcome in enumerate(outcomes):
        speedups = [t.speedup for _, _, t in outcome.layers] + [outcome.body.speedup, outcome.network.speedup]
        places = [i + (number - (len(outcomes) - 1) / 2) * width for i in range(len(labels))]
        bars = axes.bar(places, speedups, width, label=outcome.title)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    axes.axhline(1, color="black", linewidth=1, linestyle="--", label="dense PyTorch")
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_ylabel("times faster than dense PyTorch")
    axes.set_title(f"Sub-bit ResNet-18 on one {SIDE} x {SIDE} photograph, {setting()}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def setting() -> str:
    """What the figures depend on."""
    threads = torch.get_num_threads()
    level = native.active_level()
    return f"{threads} thread{'s' * (threads > 1)}, level {level}, torch {torch.__version__}"


def figures(outcomes: list[Outcome], trained: list[fashion.Trained]) -> dict[str, Any]:
    """Everything measured, for JSON."""
    return {
        "setting": setting(),
        "tau": TAU,
        "networks": [network_figures(outcome) for outcome in outcomes],
        "trained": [{"title": one.title, "right": one.right, "images": len(one.predictions)} for one in trained],
    }


def network_figures(outcome: Outcome) -> dict[str, Any]:
    """One table, for JSON."""
    return {
        "title": outcome.title,
        "layers": [
            {"name": case.name, "shape": case.shape, **time_figures(times), "difference": asdict(found)}
            for case, found, times in outcome.layers
        ],
        "body": time_figures(outcome.body),
        "network": {**time_figures(outcome.network), "difference": asdict(outcome.logits)},
        "same_class": outcome.same_class,
        "images": outcome.images,
        "bytes": asdict(outcome.size),
    }


def time_figures(times: Times) -> dict[str, float]:
    """Times, for JSON."""
    return {"dense_ms": times.dense, "subbit_ms": times.subbit, "speedup": times.speedup}


def positive(text: str) -> int:
    """A positive number on the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="A sub-bit ResNet-18 on a photograph, against the same network dense.")
    parser.add_argument("--threads", type=positive, default=1, help="threads of both sides (default: 1)")
    parser.add_argument("--rounds", type=positive, default=20, help="times each thing is measured (default: 20)")
    parser.add_argument("--cold", action="store_true", help="time with the caches as the other side leaves them")
    parser.add_argument("--image", type=Path, default=Path("out/demo.png"), help="where the chart goes")
    parser.add_argument("--json", type=Path, help="where the figures go (default: nowhere)")
    return parser.parse_args()


def main() -> None:
    """Checks, measures, prints and draws."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    console = Console()
    timing = Timing(options.rounds, options.cold)
    console.print(f"Checking and measuring: {setting()}")
    console.print(HOW_MEASURED.format(COLD if options.cold else WARM), highlight=False)
    # No thread that redraws the bar: it would run beside what is being measured.
    with Progress(console=console, transient=True, auto_refresh=False) as progress:
        outcomes = [investigate(make_networks(bits), timing, progress) for bits in (32, 1)]
    for outcome in outcomes:
        console.print(table(outcome))
        console.print(summary(outcome), highlight=False)
    trained = fashion.classify_all()
    console.print(fashion.table(trained))
    draw(outcomes, trained, options.image)
    console.print(f"Chart: {options.image}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures(outcomes, trained), indent=2) + "\n")
        console.print(f"Figures: {options.json}")


if __name__ == "__main__":
    main()
