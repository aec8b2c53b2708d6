"""What the benchmarks share: one layer against torch, correctness first, both sides measured in turns."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn import functional as F

import subbit_infer
from subbit_infer.codebook import decode, vanilla

ROUNDS = 21
WARM_UP = 3


@dataclass(frozen=True)
class Layer:
    """A convolution on one image, one group, padded to keep its size at stride 1."""

    c_in: int
    c_out: int
    side: int
    kernel: int
    stride: int

    @property
    def unit(self) -> tuple[int, int, int]:
        """The unit's shape: one 3x3 kernel, or eight channels of a 1x1."""
        return (8, 1, 1) if self.kernel == 1 else (1, 3, 3)

    @property
    def padding(self) -> int:
        """Zeros on each side."""
        return self.kernel // 2

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense convolution."""
        out_side = (self.side - 1) // self.stride + 1
        return self.c_in * self.c_out * self.kernel**2 * out_side**2


@dataclass(frozen=True)
class Sides:
    """The same convolution three times. Torch is handed the signs that the sub-bit side has to take itself."""

    subbit: Callable[[], Tensor]
    torch_nchw: Callable[[], Tensor]
    torch_channels_last: Callable[[], Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def compare(benchmark: BenchmarkFixture) -> Callable[..., None]:
    """A function that checks a layer of the given sizes and then measures it."""

    def run(*sizes: int, tau: int, activation_bits: int) -> None:
        layer = Layer(*sizes)
        sides = make_sides(layer, tau, activation_bits)
        with torch.inference_mode():
            assert torch.equal(sides.subbit(), sides.torch_nchw()), "wrong result: not measured"
            torch_ms = measure(benchmark, sides)
        info = benchmark.extra_info
        info.update(tau=tau, activation_bits=activation_bits, level=subbit_infer._C.active_level(), **torch_ms)
        if benchmark.enabled:
            seconds = benchmark.stats.stats.median
            info["speedup"] = min(torch_ms.values()) / (seconds * 1e3)
            info["gmacs_equivalent"] = layer.macs / seconds / 1e9

    return run


def make_sides(layer: Layer, tau: int, activation_bits: int) -> Sides:
    """Random weights and an input of small integers, so that every order of addition gives the same sums."""
    generator = torch.Generator().manual_seed(tau)
    units = layer.c_in // layer.unit[0]
    codebook = vanilla(tau, unit=layer.unit, seed=tau)
    indices = torch.randint(len(codebook), (layer.c_out, units), generator=generator)
    x = torch.randint(-8, 9, (1, layer.c_in, layer.side, layer.side), generator=generator).float()
    packed = subbit_infer.PackedWeight.from_indices(indices, codebook)

    convolved = x.sign() if activation_bits == 1 else x
    weight = decode(indices, codebook)
    convolved_last, weight_last = (t.contiguous(memory_format=torch.channels_last) for t in (convolved, weight))
    stride, padding = layer.stride, layer.padding
    return Sides(
        lambda: subbit_infer.conv(x, packed, stride=stride, padding=padding, activation_bits=activation_bits),
        lambda: F.conv2d(convolved, weight, None, stride, padding),
        lambda: F.conv2d(convolved_last, weight_last, None, stride, padding),
    )


def measure(benchmark: BenchmarkFixture, sides: Sides) -> dict[str, float]:
    """Has `benchmark` time the sub-bit side, with torch timed before each of its rounds; returns torch's medians.

    Each run is timed after one of the same kind that is not, to have the caches hold its data and not the last one's.
    """
    times: dict[str, list[float]] = {"torch_nchw_ms": [], "torch_channels_last_ms": []}

    def run_the_others() -> None:
        for taken, run in zip(times.values(), (sides.torch_nchw, sides.torch_channels_last), strict=True):
            run()
            start = time.perf_counter()
            run()
            taken.append((time.perf_counter() - start) * 1e3)
        sides.subbit()

    benchmark.pedantic(sides.subbit, setup=run_the_others, rounds=ROUNDS, warmup_rounds=WARM_UP, iterations=1)
    return {name: statistics.median(taken[-ROUNDS:]) for name, taken in times.items()}
