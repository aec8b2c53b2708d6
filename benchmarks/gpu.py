"""The layers on a GPU, against cuDNN: `make bench-cuda`, a few minutes.

Each contender's result is checked first; a wrong one of ours ends the run, a wrong or missing peer is named and left
out. Then they take turns: each turn runs a contender *cold* (a buffer larger than the second-level cache is written
before) and *hot* (after a run that does not count), timed by CUDA events with the device kept busy before, so that
what a launch takes on the CPU does not count. At batch 1 a turn replays a CUDA graph. Medians.

Exits with 3 where there is no GPU or no kernels for it, and with 1 where a result of ours is wrong.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu_tables import (
    A1,
    A1_PACKED,
    CUDNN,
    CUDNN_F16,
    CUDNN_TF32,
    F16,
    F32,
    INT8,
    PLANNED,
    group_of,
    of_bars,
    of_rates,
    of_totals,
    plans_for,
)
from layers import RESNET18, Layer
from machine import ROOT, output_of
from results import Record, Result
from subbit_infer import PackedWeight, conv, pack
from subbit_infer.backends.cuda import planner, runtime
from subbit_infer.core.codebook import vanilla
from subbit_infer.core.tables import Table
from timing import Sample

OUT = Path("out/bench-cuda")
BATCHES = (1, 32, 256)
ROUNDS, QUICK_ROUNDS = 15, 3
HOT_CALLS = 10  # of a graph that is replayed hot
SPACER = 256 << 20  # bytes: more than any second-level cache, and 0.1 ms of writing in which launches queue up
NO_GPU, WRONG = 3, 1


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        name: who it is.
        run: does the work once.
        expected: what it comes to.
        bound: the largest difference allowed, relative to the largest expected value.
        as_tensor: the result, from what `run` gives.
        is_ours: whether a wrong result ends the run.
    """

    name: str
    run: Callable[[], Any]
    expected: Tensor
    bound: float = 0.0
    as_tensor: Callable[[Any], Tensor] = lambda result: result
    is_ours: bool = False


@dataclass(frozen=True)
class Work:
    """Input and weight of a layer on the device: small integers without 0, so that every right result is exact."""

    layer: Layer
    batch: int
    tau: int

    @cached_property
    def x(self) -> Tensor:
        """(N, C_in, H, W) float32."""
        generator = torch.Generator("cuda").manual_seed(self.tau)
        shape = self.batch, self.layer.c_in, self.layer.side, self.layer.side
        values = torch.randint(1, 9, shape, generator=generator, device="cuda", dtype=torch.int8)
        signs = torch.randint(0, 2, shape, generator=generator, device="cuda", dtype=torch.int8) * 2 - 1
        return (values * signs).float()

    @property
    def half(self) -> Tensor:
        """The same as float16, channels_last."""
        return self.x.half().to(memory_format=torch.channels_last)

    @cached_property
    def weight(self) -> PackedWeight:
        """With powers of two as scale."""
        generator = torch.Generator().manual_seed(self.tau)
        codebook = vanilla(self.tau, unit=self.layer.unit, seed=self.tau)
        shape = self.layer.c_out, self.layer.c_in // self.layer.unit[0]
        indices = torch.randint(len(codebook), shape, generator=generator)
        scale = 2.0 ** -torch.randint(4, 8, (self.layer.c_out,), generator=generator)
        return PackedWeight.from_indices(indices, codebook, scale).to("cuda")

    @cached_property
    def dense(self) -> Tensor:
        """The weight for those who know no better."""
        return self.weight.decode()

    def exact(self, x: Tensor) -> Tensor:
        """The result, by float64, image by image to save memory."""
        weight, step = self.dense.double(), 8
        parts = [
            F.conv2d(x[i : i + step].double(), weight, None, self.layer.stride, self.layer.padding).float()
            for i in range(0, len(x), step)
        ]
        return torch.cat(parts)


def by_plan(plan: str, work: Work, x: Any, expected: Tensor, kind: str, **options: Any) -> Contender:
    """A convolution of ours by a plan, or by the planner's choice where it is ""; planned here and now."""
    weight = work.weight.to("cuda")
    weight = PackedWeight(
        weight.packed_indices.clone(), weight.packed_codebook.clone(), weight.units, weight.codewords, weight.unit,
        weight.scale,
    )  # fmt: skip
    as_tensor: Callable[[Any], Tensor] = (lambda packed: packed.unpack()) if "output" in options else (lambda y: y)

    def run() -> Any:
        return conv(x, weight, stride=work.layer.stride, padding=work.layer.padding, **options)

    with mock.patch.dict(os.environ, {"SUBBIT_PLAN": plan}):
        run()
    name = f"{kind} {plan}" if plan else PLANNED[kind]
    # cuDNN's algorithms may round where sums of halves and floats are exact.
    return Contender(name, run, expected, 1e-3 if plan in ("", "dense") else 0.0, as_tensor, is_ours=True)


def of_cudnn(name: str, work: Work, x: Tensor, expected: Tensor, *, tf32: bool, bound: float) -> Contender:
    """CuDNN's convolution of the dense weight in x's dtype and layout."""
    memory_format = torch.channels_last if x.dtype == torch.float16 else torch.contiguous_format
    weight = work.dense.to(x.dtype).to(memory_format=memory_format)
    stride, padding = [work.layer.stride] * 2, [work.layer.padding] * 2

    def run() -> Tensor:
        result: Tensor = torch.ops.aten.cudnn_convolution(x, weight, padding, stride, [1, 1], 1, True, False, tf32)
        return result

    return Contender(name, run, expected, bound)


def int8(work: Work) -> Contender:
    """Torch's quantized convolution by cuDNN, of the signs of the weight; an error where this torch has none."""
    signs = work.dense.sign()
    exact = F.conv2d(work.x, signs, None, work.layer.stride, work.layer.padding)
    step = exact.abs().max().item() / 127
    x = torch.quantize_per_tensor(work.x, 1.0, 0, torch.qint8).contiguous(memory_format=torch.channels_last)
    weight = torch.quantize_per_tensor(signs, 1.0, 0, torch.qint8).contiguous(memory_format=torch.channels_last)
    geometry = [work.layer.stride] * 2, [work.layer.padding] * 2, [1, 1], 1
    packed = torch.ops.quantized.conv2d_prepack(weight, None, *geometry)
    return Contender(
        INT8, lambda: torch.ops.quantized.conv2d(x, packed, step, 0), exact, 1 / 127, lambda y: y.dequantize()
    )


def contenders(work: Work, notes: list[str]) -> Iterator[Contender]:
    """Everybody, one after the other; peers that this torch does not have are noted."""
    exact, half = work.exact(work.x), work.half
    of_half = exact.half()
    for plan in (*plans_for(work.tau, binary=False), ""):
        yield by_plan(plan, work, work.x, exact, F32)
        yield by_plan(plan, work, half, of_half, F16)
    signs = work.exact(work.x.sign())
    for plan in ("sharing", "product", ""):
        yield by_plan(plan, work, half, signs.half(), A1, activation_bits=1)
        options = {"activation_bits": 1, "output": "packed", "pack_sign_zero": 1}
        expected = torch.where(signs >= 0, 1.0, -1.0)
        yield by_plan(plan, work, pack(work.x, sign_zero=1), expected, A1_PACKED, **options)
    yield of_cudnn(CUDNN, work, work.x, exact, tf32=False, bound=1e-4)
    yield of_cudnn(CUDNN_TF32, work, work.x, exact, tf32=True, bound=1e-2)
    yield of_cudnn(CUDNN_F16, work, half, of_half, tf32=True, bound=1e-2)
    try:
        yield int8(work)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        note = f"{INT8}: this torch has none: {str(error).splitlines()[0]}"
        if note not in notes:
            notes.append(note)


def is_right(contender: Contender) -> bool:
    """Whether it computes what is expected."""
    actual = contender.as_tensor(contender.run()).float()
    expected = contender.expected.float()
    if actual.shape != expected.shape:
        return False
    most = expected.abs().max().item()
    return (actual - expected).abs().max().item() <= contender.bound * most


class Timed:
    """A contender, ready to be timed: as calls, or as graphs that are replayed."""

    def __init__(self, contender: Contender, as_graph: bool) -> None:
        self.name = contender.name
        self.cold, self.hot, self.hot_calls = contender.run, contender.run, 1
        for _ in range(3):
            contender.run()
        if as_graph:
            self.cold, self.hot, self.hot_calls = _graph(contender.run, 1), _graph(contender.run, HOT_CALLS), HOT_CALLS
        self.cold_ms: list[float] = []
        self.hot_ms: list[float] = []

    def take_turn(self, spacer: Tensor) -> None:
        """One cold and one hot run."""
        spacer.fill_(1)
        self.cold_ms.append(_timed(self.cold))
        spacer.fill_(1)
        self.hot()
        self.hot_ms.append(_timed(self.hot) / self.hot_calls)


def _graph(run: Callable[[], Any], calls: int) -> Callable[[], None]:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    replay: Callable[[], None] = graph.replay
    return replay


def _timed(run: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def _sample(ms: list[float]) -> Sample:
    low, median, high = statistics.quantiles(ms, n=4, method="inclusive")
    return Sample(median, low, high, len(ms), 0)


def measure(work: Work, rounds: int, spacer: Tensor, notes: list[str]) -> list[Result]:
    """One layer, cold and hot.

    Raises:
        ValueError: a result of ours is wrong.
    """
    torch.backends.cudnn.benchmark = True  # cuDNN's best algorithm
    timed = []
    for contender in contenders(work, notes):
        if is_right(contender):
            timed.append(Timed(contender, as_graph=work.batch == 1))
        elif contender.is_ours:
            raise ValueError(f"{contender.name} is wrong for {work.layer.name}, batch {work.batch}, tau {work.tau}")
        else:
            notes.append(f"{contender.name} is wrong for {work.layer.name}, batch {work.batch}; left out")
    for _ in range(rounds):
        for one in timed:
            one.take_turn(spacer)
    chosen = {f"{kind} chosen": _chosen(work, kind) for kind in (F32, F16)}
    facts = {"batch": work.batch, "tau": work.tau, "macs": work.layer.macs * work.batch, **chosen}
    return [
        Result(
            group_of(work.batch, work.tau, how),
            work.layer.name,
            facts,
            {one.name: _sample(getattr(one, f"{how}_ms")) for one in timed},
        )
        for how in ("cold", "hot")
    ]


def _chosen(work: Work, kind: str) -> str:
    """The planner's choice, which it makes from sizes alone."""
    x = work.half if kind == F16 else work.x
    out_side = (work.layer.side - 1) // work.layer.stride + 1
    shape = planner.Shape(
        x.device, (work.batch, work.layer.c_out, out_side, out_side), work.layer.side**2, 1, x.dtype,
        binary=False, has_zeros=True, is_channels_last=kind == F16, packed_input=False, float_output=True,
        packed_output=False, epilogue_commutes_with_rounding=False,
    )  # fmt: skip
    weight, routes = work.weight, plans_for(work.tau, binary=False)
    return planner.candidates(shape, weight.units, weight.codewords, weight.unit, routes)[0].plan


def rates(notes: list[str]) -> dict[str, float]:
    """What the device can do at best, in 10^12 a second: bytes, or multiply-adds."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    ms = min(_timed(lambda: a @ a) for _ in range(10))
    found = {"half_macs": 8192**3 / ms / 1e9}
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    ms = min(_timed(lambda: target.copy_(source)) for _ in range(10))
    found["memory_bytes"] = 2 * source.nbytes / ms / 1e9
    program = Path(tempfile.mkdtemp(prefix="subbit-rates-")) / "rates"
    try:
        command = [
            "nvcc",
            "-std=c++17",
            "-O3",
            "-arch=native",
            "-o",
            str(program),
            str(ROOT / "benchmarks/gpu_rates.cu"),
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)
        lines = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        notes.append(f"no rates of shared memory and mma.sync: {getattr(error, 'stderr', None) or error}")
        return found
    return found | {name: float(value) for name, value in map(str.split, lines)}


def environment(command: list[str]) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "gpu": torch.cuda.get_device_name(0),
        "cuda": runtime.info(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "commit": output_of("git", "rev-parse", "--short=10", "HEAD"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(command),
    }


def show(record: Record) -> str:
    """The short tables: the networks by the planner's choice of ours against cuDNN, shares of the best, promises."""
    lines = [record.environment["gpu"]]
    for grid in (of_totals(record), of_rates(record), of_bars(record)):
        lines += ["", grid.title, *Table(grid.headings, grid.rows, right=grid.headings[grid.names :]).lines()]
    lines += ["", "at best, 10^12 a second: " + ", ".join(f"{name} {rate:.4g}" for name, rate in record.rates.items())]
    return "\n".join([*lines, *record.notes])


def main(arguments: list[str]) -> int:
    """Measures, writes JSON, prints the table; what to exit with."""
    parser = ArgumentParser(description=__doc__, prog="benchmarks/gpu.py")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, batch 1 and 32 only")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    given = parser.parse_args(arguments)
    reason = runtime.reason()
    if reason is not None:
        print(f"bench-cuda: nothing is measured: {reason}", file=sys.stderr)
        return NO_GPU
    try:
        runtime.check_device(torch.device("cuda", 0))
    except RuntimeError as error:
        print(f"bench-cuda: nothing is measured: {error}", file=sys.stderr)
        return NO_GPU
    notes: list[str] = []
    results: list[Result] = []
    spacer = torch.empty(SPACER, dtype=torch.uint8, device="cuda")
    works = [
        Work(layer, batch, tau)
        for batch in (BATCHES[:2] if given.quick else BATCHES)
        for tau in (5, 2)
        for layer in RESNET18  # ResNet-34 has the same ones, more often
    ]
    with torch.inference_mode():
        for work in works:
            print(f"{work.layer.name}, batch {work.batch}, tau {work.tau}", file=sys.stderr)
            try:
                results += measure(work, QUICK_ROUNDS if given.quick else ROUNDS, spacer, notes)
            except ValueError as error:
                print(f"bench-cuda: {error}", file=sys.stderr)
                return WRONG
            torch.cuda.empty_cache()
        record = Record("cuda", environment(["benchmarks/gpu.py", *arguments]), results, notes, rates(notes))
    path = record.save(given.out)
    print(show(record))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
