"""Tables of what was measured."""

import math
import statistics
from collections.abc import Iterable

from rich.console import Console

import bars
import rates
from bars import gmacs, labels
from grid import Grid
from layers import RESNET18, RESNET34, RESNET50_1X1
from results import A1, A32, FLOAT_PEERS, SHORT, VERSUS, Record, Result, over_best_plan, total_of, total_speedup

WORST = 12  # choices of the planner that are listed
WIDTH = 150  # of a terminal that holds all contenders in a row
TITLES = {
    "3x3": "3x3 layers, ms",
    "1x1": "1x1 layers of ResNet-50, ms",
    "network": "Whole networks, batch 1, ms",
    "tau": "Against tau, ms",
    "outputs": "Against the number of outputs, ms",
    "batch": "Against the batch, ms",
    "sample": "A sample of all sizes, ms",
    "threads": "One thread and two, ms",
    "calls": "A call of next to no work, us",
}
TOTALS = {
    "3x3": {"16 of ResNet-18": labels(RESNET18), "32 of ResNet-34": labels(RESNET34)},
    "1x1": {"32 of ResNet-50": labels(RESNET50_1X1)},
}


def show(record: Record, console: Console) -> None:
    """Prints a part."""
    console = Console(width=max(console.width, WIDTH))
    for grid in of_record(record):
        console.print(grid.rich())
    for note in record.notes:
        console.print(f"Note: {note}.", highlight=False)


def show_bars(records: dict[str, Record], console: Console) -> None:
    """Prints the promises and where the last run loses."""
    console = Console(width=max(console.width, WIDTH))
    console.print(of_bars(records).rich())
    console.print(of_losses(records.values()).rich())


def of_record(record: Record) -> list[Grid]:
    """The tables of a part."""
    groups = dict.fromkeys(result.group for result in record.results)
    grids = [
        grid for group in groups for grid in (of_plans if group == "plans" else _of_group)(group, record.group(group))
    ]
    return grids + ([_of_rates(record), _of_achieved(record)] if record.rates else [])


def of_bars(records: dict[str, Record]) -> Grid:
    """The promises."""
    grid = Grid("Promises", ["", "promised", "measured", "", "decided by"])
    verdicts = {True: "met", False: "NOT met", None: "not measured"}
    for bar in bars.all_bars(records):
        target = f"{'>=' if bar.at_least else '<='} {bar.target:g}{_spaced(bar.unit)}"
        measured = "" if bar.measured is None else f"{bar.measured:.3g}{_spaced(bar.unit)}"
        grid.rows.append([bar.what, target, measured, verdicts[bar.met], bar.where])
    return grid


def of_losses(records: Iterable[Record]) -> Grid:
    """Every comparison in which a rival is faster than we are, the worst first."""
    grid = Grid("Where we lose", ["part", "work", "ours", "rival", "ours, ms", "rival's, ms", "ratio"], names=4)
    found = []
    for record in records:
        for result in record.results:
            for versus in VERSUS:
                speedup, best = result.speedup(versus.ours, versus.rivals), result.best(versus.rivals)
                if speedup is not None and best is not None and speedup < 1:
                    ms = [f"{result.ms[name].median:.4g}" for name in (versus.ours, best)]
                    part = f"{record.part}: {result.group}"
                    found.append((speedup, [part, result.label, SHORT[versus.ours], best, *ms, f"{speedup:.2f}"]))
    grid.rows = [row for _, row in sorted(found)]
    return grid


def of_plans(group: str, results: list[Result]) -> list[Grid]:
    """How good the planner's choices are, and the worst of them."""
    summary = Grid(
        "The planner's choice over the best plan measured",
        ["", "layers", "median", "90th percentile", "worst", "within 10 %", "best chosen"],
    )
    kinds = {f"A{bits}": [r for r in results if r.facts["activation_bits"] == bits] for bits in (32, 1)}
    for name, found in {**kinds, "all": results}.items():
        ratios = sorted(over_best_plan(result) for result in found)
        if not ratios:
            continue
        shares = [sum(ratio <= most for ratio in ratios) / len(ratios) for most in (bars.NEAR, 1)]
        at_90 = ratios[math.ceil(0.9 * len(ratios)) - 1]
        figures = [f"{ratio:.3f}x" for ratio in (statistics.median(ratios), at_90, ratios[-1])]
        row = [name, str(len(ratios)), *figures, *(f"{100 * share:.0f} %" for share in shares)]
        (summary.totals if name == "all" else summary.rows).append(row)
    worst = Grid(f"The {WORST} worst choices, us of a call", ["", "chosen", "best"], names=3)
    worst.headings += ["chosen's", "predicted", "best's", "predicted", "ratio"]
    for result in sorted(results, key=over_best_plan, reverse=True)[:WORST]:
        pair = result.facts["chosen"], min(result.ms, key=lambda name: result.ms[name].median)
        times = [t for name in pair for t in (1e3 * result.ms[name].median, result.facts["predicted_us"][name])]
        worst.rows.append([result.label, *pair, *(f"{t:.1f}" for t in times), f"{over_best_plan(result):.2f}x"])
    return [summary, worst]


def _of_group(group: str, results: list[Result]) -> list[Grid]:
    names = list(dict.fromkeys(name for result in results for name in result.ms))
    known = [name for name in SHORT if name in names]
    names = known + [name for name in names if name not in known]
    versus = [v for v in VERSUS if any(r.speedup(v.ours, v.rivals) for r in results)]
    grid = Grid(TITLES[group], ["", *(SHORT.get(name, name) for name in names), *(v.short for v in versus)])
    unit = 1e3 if group == "calls" else 1.0

    def row(result: Result, speedups: list[float | None]) -> list[str]:
        times = [f"{result.ms[name].median * unit:.3f}" if name in result.ms else "" for name in names]
        return [result.label, *times, *("" if s is None else f"{s:.2f}x" for s in speedups)]

    for result in results:
        grid.rows.append(row(result, [result.speedup(v.ours, v.rivals) for v in versus]))
    for label, counts in TOTALS.get(group, {}).items():
        total = total_of(results, counts, label)
        if total:
            grid.totals.append(row(total, [total_speedup(results, counts, v.ours, v.rivals) for v in versus]))
    return [grid]


def _of_rates(record: Record) -> Grid:
    """What the machine can do."""
    rows = [[name, f"{rate:.2f}"] for name, rate in record.rates.items()]
    return Grid("Rates of the machine", ["instruction, operand from L1", "10^9 a second"], rows)


def _of_achieved(record: Record) -> Grid:
    """How much of that is reached."""
    kinds = {A32: "load-add", A1: "vpermb+add"}
    grid = Grid("Achieved rates: GMAC/s of the dense layer, and how much of what the machine's rates allow", [""])
    for ours, kind in kinds.items():
        grid.headings += [SHORT[ours], f"of {kind}"]
    grid.headings += ["best float peer", "of fma"]
    for result in record.results:
        taps = 9 if result.facts["kernel"] == 3 else 8
        best = result.best(FLOAT_PEERS)
        row = [result.label]
        for name, kind in [*kinds.items(), (best, "fma")]:
            ceiling = rates.ceiling(record.rates, kind, taps)
            rate = gmacs(result, name) if name else None
            row += [f"{rate:.0f}" if rate else "", f"{100 * rate / ceiling:.0f} %" if rate and ceiling else ""]
        grid.rows.append(row)
    return grid


def _spaced(unit: str) -> str:
    return unit if unit == "x" else f" {unit}"
