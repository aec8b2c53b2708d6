"""What is measured, by name, and how it is kept: one JSON file a part."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from timing import Sample

A32, A1, A1_PACKED, REACTNET = "subbit A32", "subbit A1", "subbit A1 packed", "subbit A1 ReActNet"
TORCH, TORCH_LAST = "torch NCHW", "torch channels_last"
COMPILED, COMPILED_LAST = "torch.compile NCHW", "torch.compile channels_last"
ORT, OPENVINO = "ONNX Runtime", "OpenVINO"
ONE_BIT, ONE_BIT_KERNEL = "OpenVINO 1-bit", "OpenVINO 1-bit kernel"

THREADS = 2  # of the parts that compare numbers of threads

PLANS = ("rows", "patches", "bits", "dense")  # the planner's ways to run a layer

OURS = (A32, A1, A1_PACKED, REACTNET, *PLANS)
EAGER = (TORCH, TORCH_LAST)
ENGINES = (ORT, OPENVINO)
FLOAT_PEERS = (*EAGER, COMPILED, COMPILED_LAST, *ENGINES)

SHORT = {
    A32: "A32",
    A1: "A1",
    A1_PACKED: "A1 packed",
    REACTNET: "ReActNet",
    TORCH: "torch",
    TORCH_LAST: "ch. last",
    COMPILED: "compiled",
    COMPILED_LAST: "comp. c.l.",
    ORT: "ORT",
    OPENVINO: "OpenVINO",
    ONE_BIT: "1-bit",
    ONE_BIT_KERNEL: "its kernel",
}


class Versus(NamedTuple):
    """One of ours and whom it is held against: those that do the same work from the same input to the same output."""

    ours: str
    rivals: tuple[str, ...]
    short: str


VERSUS = (
    Versus(A32, FLOAT_PEERS, "A32 : float"),
    Versus(A1, FLOAT_PEERS, "A1 : float"),
    Versus(A1, (ONE_BIT,), "A1 : 1-bit"),
    Versus(A1_PACKED, (ONE_BIT_KERNEL,), "packed : kernel"),
    Versus(REACTNET, FLOAT_PEERS, "ReActNet : float"),
)


def on_threads(name: str, number: int) -> str:
    """A contender's name where it runs on so many threads."""
    return f"{name}, {number} thread{'s' * (number > 1)}"


@dataclass(frozen=True)
class Result:
    """One comparison.

    Args:
        group: Which list it belongs to: "3x3", "tau", ...
        label: Which work was done.
        facts: Its sizes, and what else is worth knowing.
        ms: Milliseconds by contender.
    """

    group: str
    label: str
    facts: dict[str, Any]
    ms: dict[str, Sample]

    def best(self, rivals: Iterable[str]) -> str | None:
        """The fastest of those rivals that were measured."""
        return min((name for name in rivals if name in self.ms), key=lambda name: self.ms[name].median, default=None)

    def speedup(self, ours: str, rivals: Iterable[str]) -> float | None:
        """The fastest rival's time over ours; None where a side was not measured."""
        best = self.best(rivals)
        if best is None or ours not in self.ms:
            return None
        return self.ms[best].median / self.ms[ours].median


def over_best_plan(result: Result) -> float:
    """The time of the plan that the planner chose over that of the plan measured to be the best."""
    return result.ms[result.facts["chosen"]].median / min(sample.median for sample in result.ms.values())


@dataclass(frozen=True)
class Record:
    """A part of the benchmarks: what was measured, on what, and what was left out and why."""

    part: str
    environment: dict[str, Any]
    results: list[Result]
    notes: list[str]
    rates: dict[str, float]

    def group(self, name: str) -> list[Result]:
        """The results of one list."""
        return [result for result in self.results if result.group == name]

    def to_json(self) -> str:
        """The record as text; `load` reads it."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def save(self, folder: Path) -> Path:
        """Writes <folder>/<part>.json."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.part}.json"
        path.write_text(self.to_json())
        return path


def load(path: Path) -> Record:
    """Reads what `Record.save` has written."""
    data = json.loads(path.read_text())
    results = [
        Result(r["group"], r["label"], r["facts"], {name: Sample(**ms) for name, ms in r["ms"].items()})
        for r in data.pop("results")
    ]
    return Record(results=results, **data)


def load_all(folder: Path) -> dict[str, Record]:
    """All records of a folder by part."""
    return {path.stem: load(path) for path in sorted(folder.glob("*.json"))}


def total_of(results: Iterable[Result], counts: dict[str, int], label: str) -> Result | None:
    """The layers of a network together; None unless each of them was measured.

    Args:
        results: The comparisons, one for each distinct layer.
        counts: How often each label occurs.
        label: The name of the whole.
    """
    by_label = {result.label: result for result in results}
    if not counts.keys() <= by_label.keys():
        return None
    parts = [(by_label[name], count) for name, count in counts.items()]
    names = [name for name in parts[0][0].ms if all(name in part.ms for part, _ in parts)]

    def total(name: str) -> Sample:
        samples = [(part.ms[name], count) for part, count in parts]
        median, low, high = (sum(getattr(s, f) * n for s, n in samples) for f in ("median", "low", "high"))
        return Sample(median, low, high, min(s.runs for s, _ in samples), sum(s.disturbed for s, _ in samples))

    return Result(parts[0][0].group, label, {}, {name: total(name) for name in names})


def total_speedup(results: Iterable[Result], counts: dict[str, int], ours: str, rivals: Iterable[str]) -> float | None:
    """The speed-up of a network's layers together, each against its own fastest rival; None where one is missing."""
    by_label = {result.label: result for result in results}
    rivals = tuple(rivals)
    theirs_ms = ours_ms = 0.0
    for label, count in counts.items():
        result = by_label.get(label)
        best = result.best(rivals) if result else None
        if result is None or best is None or ours not in result.ms:
            return None
        theirs_ms += count * result.ms[best].median
        ours_ms += count * result.ms[ours].median
    return theirs_ms / ours_ms
