"""What the pytest-benchmark suites share: one layer against torch, correctness first, both sides measured in turns.

They are the quick look while a kernel is being written (`make bench-pytest`); `make bench` compares with everybody.
"""

import statistics
from collections.abc import Callable, Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import ours
import peers
from layers import Layer, Problem
from subbit_infer.backends import native
from timing import Contender, check, take_turn

ROUNDS = 21
WARM_UP = 3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def compare(benchmark: BenchmarkFixture) -> Callable[..., None]:
    """A function that checks a layer and then measures it."""

    def run(layer: Layer, *, tau: int, activation_bits: int) -> None:
        problem = Problem(layer, tau)
        contender = ours.a1(problem) if activation_bits == 1 else ours.a32(problem)
        others = peers.torch_of_layer(problem)
        with torch.inference_mode():
            for each in (contender, *others):
                check(each)
            torch_ms = measure(benchmark, contender, others)
        info = benchmark.extra_info
        info.update(tau=tau, activation_bits=activation_bits, level=native.active_level(), **torch_ms)
        if benchmark.stats is not None:  # None with --benchmark-disable
            seconds = benchmark.stats.stats.median
            info["speedup"] = min(torch_ms.values()) / (seconds * 1e3)
            info["gmacs_equivalent"] = layer.macs / seconds / 1e9

    return run


def measure(benchmark: BenchmarkFixture, contender: Contender, others: list[Contender]) -> dict[str, float]:
    """Has `benchmark` time the contender, and times the others before each of its rounds; returns their medians."""
    times: dict[str, list[float]] = {other.name: [] for other in others}

    def run_the_others() -> None:
        for other in others:
            times[other.name].append(take_turn(other).ms)
        contender.run()

    benchmark.pedantic(contender.run, setup=run_the_others, rounds=ROUNDS, warmup_rounds=WARM_UP, iterations=1)
    return {f"{name} ms": statistics.median(taken[-ROUNDS:]) for name, taken in times.items()}
