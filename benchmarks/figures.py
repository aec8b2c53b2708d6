"""The figures of what was measured."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

import rates
from bars import gmacs
from layers import RESNET18
from results import (
    A1,
    A1_PACKED,
    A32,
    COMPILED,
    COMPILED_LAST,
    FLOAT_PEERS,
    ONE_BIT,
    ONE_BIT_KERNEL,
    OPENVINO,
    ORT,
    REACTNET,
    TORCH,
    TORCH_LAST,
    VERSUS,
    Record,
    Result,
)

DPI = 130
HEIGHT = 4.5
COLORS = {
    A32: "tab:blue",
    A1: "tab:green",
    A1_PACKED: "limegreen",
    REACTNET: "darkgreen",
    TORCH: "tab:orange",
    TORCH_LAST: "goldenrod",
    COMPILED: "peru",
    COMPILED_LAST: "sienna",
    ORT: "tab:purple",
    OPENVINO: "tab:red",
    ONE_BIT: "tab:gray",
    ONE_BIT_KERNEL: "black",
}
STAGES = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def draw_all(records: dict[str, Record], folder: Path) -> list[Path]:
    """Draws what there are records for; returns the files."""
    figures: list[tuple[str, str, Callable[[Record], Figure]]] = [
        ("speedups", "layers", _speedups),
        ("timeline", "layers", _timeline),
        ("roofline", "layers", _roofline),
        ("networks", "networks", _networks),
        ("tau", "sweeps", _tau),
        ("outputs", "sweeps", _outputs),
        ("batch", "sweeps", _batch),
    ]
    drawn = []
    for name, part, draw in figures:
        if part in records:
            path = folder / f"{name}.png"
            draw(records[part]).savefig(path, dpi=DPI)
            drawn.append(path)
    return drawn


def _new(record: Record, title: str, panels: int = 1, width: float = 10) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, HEIGHT), layout="constrained")
    axes = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    where = record.environment
    threads = where["threads"]
    figure.suptitle(
        f"{title}\n{where['cpu']}, level {where['level']}, {threads} thread{'s' * (threads > 1)}, "
        f"{where['date']}, commit {where['commit']}",
        fontsize=9,
    )
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _groups_of_bars(axes: Axes, labels: list[str], series: dict[str, tuple[list[float], str]], fmt: str) -> None:
    """Bars side by side at each label; nan leaves a gap."""
    width = 0.8 / len(series)
    for number, (name, (values, color)) in enumerate(series.items()):
        places = [i + (number - (len(series) - 1) / 2) * width for i in range(len(labels))]
        bars = axes.bar(places, values, width, label=name, color=color)
        axes.bar_label(bars, fmt=lambda value: "" if value != value else fmt % value, fontsize=5, padding=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=8)


def _legend(figure: Figure) -> None:
    """One legend beside the panels, which share their colours."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=7)


def _log_y(axes: Axes) -> None:
    """A logarithmic axis with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _log_x(axes: Axes) -> None:
    """The same for powers of two."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _speedups(record: Record) -> Figure:
    """Of each layer: how many times faster."""
    figure, (axes,) = _new(record, "Speed-up over the fastest rival, layer by layer, tau = 5", width=13)
    results = [*record.group("3x3"), *record.group("1x1")]
    versus = [v for v in VERSUS if any(r.speedup(v.ours, v.rivals) for r in results)]
    colors = dict(zip(VERSUS, ("tab:blue", "tab:green", "tab:gray", "black", "tab:red"), strict=True))
    series = {v.short: ([_nan(r.speedup(v.ours, v.rivals)) for r in results], colors[v]) for v in versus}
    _groups_of_bars(axes, [r.label for r in results], series, "%.1f")
    _legend(figure)
    axes.axhline(1, color="black", linewidth=1, linestyle="--")
    _log_y(axes)
    axes.set_ylabel("times faster")
    return figure


def _timeline(record: Record) -> Figure:
    """The 3x3 layers of a ResNet-18 in order, as in the paper's Figure 13: what each stage takes."""
    figure, (axes,) = _new(record, "The sixteen 3x3 layers of ResNet-18 one after the other, by stage, tau = 5")
    by_label = {result.label: result for result in record.group("3x3")}
    stages: list[list[str]] = [[], [], [], []]
    sides = (56, 28, 14, 7)
    for layer, count in sorted(RESNET18.items(), key=lambda item: -item[0].side // item[0].stride):
        stages[sides.index(layer.side // layer.stride)] += [layer.name] * count
    names = [n for n in COLORS if all(n in result.ms for result in by_label.values())][::-1]
    for row, name in enumerate(names):
        start = 0.0
        for number, (labels, color) in enumerate(zip(stages, STAGES, strict=True), start=1):
            for place, label in enumerate(labels):
                ms = by_label[label].ms[name].median
                show = f"stage {number}" if row == 0 and place == 0 else None
                axes.barh(row, ms, left=start, color=color, edgecolor="white", linewidth=0.6, label=show)
                start += ms
        axes.text(start, row, f" {start:.1f} ms", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("ms")
    _legend(figure)
    return figure


def _roofline(record: Record) -> Figure:
    """The rate of each layer under the machine's."""
    figure, panels = _new(record, "Achieved rates under the machine's, tau = 5", panels=2, width=13)
    lines = (("load-add", A32, "float load-add"), ("vpermb+add", A1, "vpermb"), ("fma", TORCH, "FMA (dense)"))
    for axes, group, taps in zip(panels, ("3x3", "1x1"), (9, 8), strict=True):
        results = record.group(group)
        for name in (A32, A1, A1_PACKED, ONE_BIT, ONE_BIT_KERNEL):
            values = [gmacs(r, name) if name in r.ms else float("nan") for r in results]
            if any(value == value for value in values):
                axes.plot(range(len(results)), values, "o", color=COLORS[name], label=name)
        dense = [max((gmacs(r, n) for n in FLOAT_PEERS if n in r.ms), default=float("nan")) for r in results]
        axes.plot(range(len(results)), dense, "o", color=COLORS[TORCH], label="best float peer")
        for kind, name, label in lines:
            ceiling = rates.ceiling(record.rates, kind, taps)
            if ceiling:
                axes.axhline(ceiling, color=COLORS[name], linestyle="--", linewidth=1)
                axes.text(0, ceiling, f" {label}: {ceiling:.0f}", va="bottom", fontsize=7, color=COLORS[name])
        axes.set_xticks(range(len(results)), [r.label for r in results], rotation=45, ha="right", fontsize=8)
        _log_y(axes)
        axes.set_ylabel("GMAC/s of the dense layer")
        axes.set_title(group, fontsize=9)
    _legend(figure)
    return figure


def _networks(record: Record) -> Figure:
    """Milliseconds of each network."""
    figure, (axes,) = _new(record, "Whole networks, batch 1, tau = 5", width=12)
    results = record.group("network")
    names = [name for name in COLORS if any(name in r.ms for r in results)]
    series = {n: ([r.ms[n].median if n in r.ms else float("nan") for r in results], COLORS[n]) for n in names}
    _groups_of_bars(axes, [r.label for r in results], series, "%.1f")
    _legend(figure)
    axes.set_ylabel("ms")
    _log_y(axes)
    return figure


def _lines(axes: Axes, results: list[Result], fact: str, *, each_image: bool = False) -> None:
    """A line a contender: milliseconds against one of the facts."""
    for name, color in COLORS.items():
        measured = [result for result in results if name in result.ms]
        ms = [r.ms[name].median / (r.facts["batch"] if each_image else 1) for r in measured]
        if ms:
            axes.plot([r.facts[fact] for r in measured], ms, "o-", markersize=3, linewidth=1, color=color, label=name)
    _log_y(axes)
    axes.set_ylabel("ms an image" if each_image else "ms")


def _by_place(results: list[Result]) -> dict[str, list[Result]]:
    """Results by the layer that they vary, batch apart."""
    places: dict[str, list[Result]] = {}
    for result in results:
        places.setdefault(result.label.partition(" ")[0], []).append(result)
    return places


def _tau(record: Record) -> Figure:
    """Time against tau."""
    places = _by_place(record.group("tau"))
    figure, panels = _new(record, "Time against tau", panels=len(places))
    for axes, (label, results) in zip(panels, places.items(), strict=True):
        _lines(axes, results, "tau")
        axes.set_title(label, fontsize=9)
        axes.set_xlabel("tau, bits an index")
    _legend(figure)
    return figure


def _outputs(record: Record) -> Figure:
    """Time against the number of outputs."""
    figure, (axes,) = _new(record, "Time against the number of outputs: 256 channels, 14 x 14, 3x3, tau = 5", width=7)
    _lines(axes, record.group("outputs"), "c_out")
    _log_x(axes)
    axes.set_xlabel("output channels")
    _legend(figure)
    return figure


def _batch(record: Record) -> Figure:
    """Time of an image against the batch."""
    places = _by_place(record.group("batch"))
    figure, panels = _new(record, "Time of an image against the batch, tau = 5", panels=len(places))
    for axes, (label, results) in zip(panels, places.items(), strict=True):
        _lines(axes, results, "batch", each_image=True)
        axes.set_title(label, fontsize=9)
        _log_x(axes)
        axes.set_xlabel("batch")
    _legend(figure)
    return figure
