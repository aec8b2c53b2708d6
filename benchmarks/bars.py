"""What this project promises about speed, as numbers, and whether the last run keeps it."""

from collections.abc import Iterable
from dataclasses import dataclass

import rates
from layers import RESNET18, RESNET34, RESNET50_1X1, Layer
from results import (
    A1,
    A1_PACKED,
    A32,
    EAGER,
    ENGINES,
    FLOAT_PEERS,
    ONE_BIT,
    ONE_BIT_KERNEL,
    REACTNET,
    THREADS,
    Record,
    Result,
    on_threads,
    over_best_plan,
    total_speedup,
)

NEAR = 1.1  # times the best plan's time: as good as that
LONG_MS = 0.3  # a layer that takes longer is worth two threads
TAPS = 9


@dataclass(frozen=True)
class Bar:
    """A promise: what is measured has to be at least (or at most) the target."""

    what: str
    target: float
    measured: float | None  # None where it was not
    unit: str
    at_least: bool = True
    where: str = ""  # which case decided

    @property
    def met(self) -> bool | None:
        """Whether it is kept; None where it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.target if self.at_least else self.measured <= self.target


def labels(counts: dict[Layer, int]) -> dict[str, int]:
    """Counts by label."""
    return {layer.name: count for layer, count in counts.items()}


def all_bars(records: dict[str, Record]) -> list[Bar]:
    """Every promise, from the records by part."""
    return [*_layers(records), *_rates(records), *_networks(records), *_the_rest(records)]


def _group(records: dict[str, Record], part: str, group: str) -> list[Result]:
    return records[part].group(group) if part in records else []


def _layers(records: dict[str, Record]) -> list[Bar]:
    native, avx2 = (_group(records, part, "3x3") for part in ("layers", "layers-avx2"))
    ones = _group(records, "layers", "1x1")
    body18, body34, body50 = labels(RESNET18), labels(RESNET34), labels(RESNET50_1X1)

    def bar(
        what: str, target: float, found: list[Result], body: dict[str, int], ours: str, rivals: Iterable[str]
    ) -> Bar:
        return Bar(what, target, total_speedup(found, body, ours, rivals), "x")

    return [
        bar("A32, ResNet-18's 3x3 layers : each layer's best float peer", 3.13, native, body18, A32, FLOAT_PEERS),
        bar("A32, ResNet-34's 3x3 layers : each layer's best float peer", 3.33, native, body34, A32, FLOAT_PEERS),
        bar("A1, ResNet-18's 3x3 layers : OpenVINO 1-bit, whole", 2.5, native, body18, A1, (ONE_BIT,)),
        bar(
            "A1 packed in and out, the same : OpenVINO's 1-bit kernel alone",
            1.3, native, body18, A1_PACKED, (ONE_BIT_KERNEL,),
        ),
        bar("A1, the same : each layer's best float peer", 10, native, body18, A1, FLOAT_PEERS),
        bar("AVX2, A32, ResNet-18's 3x3 layers : torch held to AVX2", 2.5, avx2, body18, A32, EAGER),
        bar("AVX2, A1, the same : OpenVINO 1-bit, whole, held to AVX2", 1.5, avx2, body18, A1, (ONE_BIT,)),
        bar("A32, ResNet-50's 1x1 layers : each layer's best float peer", 2, ones, body50, A32, FLOAT_PEERS),
        bar("A1, ResNet-50's 1x1 layers : each layer's best float peer", 4, ones, body50, A1, FLOAT_PEERS),
    ]  # fmt: skip


def _rates(records: dict[str, Record]) -> list[Bar]:
    found = {result.label: result for result in _group(records, "layers", "3x3")}
    machine = records["layers"].rates if "layers" in records else {}

    def bar(ours: str, label: str, kind: str, target: float) -> Bar:
        ceiling = rates.ceiling(machine, kind, TAPS)
        result = found.get(label)
        percent = result and ceiling and 100 * gmacs(result, ours) / ceiling
        return Bar(f"{ours.removeprefix('subbit ')}, {label} : rate of {kind}", target, percent or None, "%")

    return [
        bar(A1, "256>256@14", "vpermb+add", 50),
        bar(A1, "512>512@7", "vpermb+add", 50),
        bar(A32, "256>256@14", "load-add", 55),
    ]


def gmacs(result: Result, name: str) -> float:
    """The rate of a layer, in GMAC/s of the dense convolution."""
    return float(result.facts["macs"] / result.ms[name].median / 1e6)


def _networks(records: dict[str, Record]) -> list[Bar]:
    network = next((r for r in _group(records, "networks", "network") if r.label == "ResNet-18"), None)

    def bar(what: str, ours: str, target: float) -> Bar:
        speedup = network.speedup(ours, ENGINES) if network else None
        return Bar(f"{what} : the faster of ONNX Runtime and OpenVINO on ResNet-18 f32", target, speedup, "x")

    return [bar("A32, ResNet-18", A32, 2), bar("A1, ReActNet-style ResNet-18", REACTNET, 4)]


def _the_rest(records: dict[str, Record]) -> list[Bar]:
    return [
        _planner(_group(records, "plans", "plans")),
        _threads(_group(records, "threads", "threads")),
        _calls(_group(records, "calls", "calls")),
        *(_never_slower(_group(records, "sample", "sample"), ours) for ours in (A32, A1)),
    ]


def _planner(found: list[Result]) -> Bar:
    ratios = [over_best_plan(result) for result in found]
    share = 100 * sum(ratio <= NEAR for ratio in ratios) / len(ratios) if ratios else None
    worst = max(found, key=over_best_plan).label if found else ""
    return Bar("planner within 10 % of the best measured plan: share", 90, share, "%", where=worst)


def _threads(found: list[Result]) -> Bar:
    gains = [
        (result.ms[one].median / result.ms[two].median, f"{ours.removeprefix('subbit ')} {result.label}")
        for result in found
        for ours in (A32, A1, A1_PACKED)
        for one, two in [(on_threads(ours, 1), on_threads(ours, THREADS))]
        if one in result.ms and result.ms[one].median > LONG_MS
    ]
    gain, where = min(gains, default=(None, ""))
    return Bar(f"two threads : one, every layer over {LONG_MS} ms", 1.7, gain, "x", where=where)


def _calls(found: list[Result]) -> Bar:
    taken = [(result.ms[ours].median * 1e3, result.label) for result in found for ours in (A32, A1)]
    microseconds, where = max(taken, default=(None, ""))
    return Bar("a call of next to no work", 15, microseconds, "us", at_least=False, where=where)


def _never_slower(found: list[Result], ours: str) -> Bar:
    slowest = [(1 / speedup, result.label) for result in found if (speedup := result.speedup(ours, EAGER))]
    ratio, where = max(slowest, default=(None, ""))
    what = f"{ours.removeprefix('subbit ')}, {len(found)} layers of all sizes: time over torch's better layout"
    return Bar(what, 1.1, ratio, "x", at_least=False, where=where)
