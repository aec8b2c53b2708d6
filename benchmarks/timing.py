"""Measuring: contenders take turns, each checked first."""

import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

WARM_UP = 2  # turns that do not count
PATIENCE = 3
SETTLE = 0.003  # seconds in which another contender's threads stop spinning for more work


class WrongResultError(Exception):
    """A contender computes something else than the others."""


@dataclass(frozen=True)
class Contender:
    """One way to do the work that is compared.

    Args:
        name: Who it is: one of `results`' names.
        run: Does the work once.
        expected: What the work has to come to.
        as_tensor: The result, from what `run` has returned; cut to the part that `expected` has.
        bound: The largest difference allowed, relative to the largest expected value.
        before: Called before its turn; not timed.
        read_ms: Milliseconds of the last run where its clock is not ours: a part of the work, from a profile.
    """

    name: str
    run: Callable[[], Any]
    expected: Tensor
    as_tensor: Callable[[Any], Tensor] = lambda result: result
    bound: float = 0.0
    before: Callable[[], object] = lambda: None
    read_ms: Callable[[], float] | None = None


@dataclass(frozen=True)
class Sample:
    """Milliseconds: the median, and the quartiles around it; of how many runs, and how many more were disturbed."""

    median: float
    low: float
    high: float
    runs: int
    disturbed: int


@dataclass(frozen=True)
class Pace:
    """How long to measure: until `rounds` undisturbed runs, or `least` of them and `seconds` have passed.

    On a busy machine it ends at the latest when `PATIENCE` times `seconds` have passed.
    """

    rounds: int
    least: int
    seconds: float


class Turn(NamedTuple):
    """One timed run: milliseconds, and whether the CPU was taken away meanwhile."""

    ms: float
    disturbed: bool


def check(contender: Contender) -> None:
    """Runs a contender once and compares.

    Raises:
        WrongResultError: the result differs by more than the bound.
    """
    contender.before()
    actual = contender.as_tensor(contender.run())
    if actual.shape != contender.expected.shape:
        raise WrongResultError(f"shape {tuple(actual.shape)}, expected {tuple(contender.expected.shape)}")
    most = contender.expected.abs().max().item()
    difference = (actual - contender.expected).abs().max().item()
    if not difference <= contender.bound * most:
        raise WrongResultError(f"differs by {difference:.3g}, the largest value is {most:.3g}")


def take_turns(contenders: Sequence[Contender], pace: Pace) -> dict[str, Sample]:
    """Milliseconds of each contender, by name.

    They take turns, so that all meet the same weather on the machine. A turn is one run that is not timed, to have the
    caches hold this contender's data and not the last one's, and one that is. Runs during which the CPU was given to
    another process do not count as long as there are enough others: they hit long runs more often than short ones, and
    so would change ratios.
    """
    turns: dict[str, list[Turn]] = {contender.name: [] for contender in contenders}
    pause = SETTLE if torch.get_num_threads() > 1 else 0.0
    gc.collect()
    gc.disable()
    try:
        for contender in contenders:
            for _ in range(WARM_UP):
                take_turn(contender)
        start = time.perf_counter()
        while not _enough(turns.values(), pace, time.perf_counter() - start):
            for contender in contenders:
                if pause:
                    time.sleep(pause)
                turns[contender.name].append(take_turn(contender))
    finally:
        gc.enable()
    return {name: _sample(taken, pace.least) for name, taken in turns.items()}


def take_turn(contender: Contender) -> Turn:
    """Times the second of two runs."""
    contender.before()
    contender.run()
    switches = _switches()
    start = time.perf_counter()
    contender.run()
    passed = (time.perf_counter() - start) * 1e3
    disturbed = _switches() != switches
    return Turn(contender.read_ms() if contender.read_ms else passed, disturbed)


def _switches() -> int:
    """How often another process was given a CPU of this one."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _enough(turns: Iterable[list[Turn]], pace: Pace, passed: float) -> bool:
    fewest = min(sum(not turn.disturbed for turn in taken) for taken in turns)
    if passed > PATIENCE * pace.seconds:
        return all(len(taken) >= pace.least for taken in turns)
    return fewest >= (pace.least if passed > pace.seconds else pace.rounds)


def _sample(turns: list[Turn], least: int) -> Sample:
    undisturbed = [turn.ms for turn in turns if not turn.disturbed]
    counted = undisturbed if len(undisturbed) >= least else [turn.ms for turn in turns]
    low, median, high = statistics.quantiles(counted, n=4, method="inclusive")
    return Sample(median, low, high, len(counted), len(turns) - len(undisturbed))
