"""The parts of the benchmarks: which work is compared by whom."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

import machine
import ours
import peers
import rates
from layers import RESNET18, RESNET50_1X1, Layer, Problem
from results import A1, A32, OURS, REACTNET, THREADS, TORCH, Result, on_threads
from subbit_infer import PackedWeight, conv, models
from subbit_infer.core import codebook
from timing import Contender, Pace, Sample, WrongResultError, check, take_turns

TAU = 5
SEED = 0
UNSTEADY = 1.25  # quartiles further apart than this mean that something else was going on

OUTPUTS_AT = Layer(256, 0, 14)  # where the number of outputs is varied
OUTPUTS = (16, 32, 64, 128, 256, 512, 1024)
TAU_AT = (Layer(64, 64, 56), Layer(256, 256, 14))
TAUS = (1, 2, 3, 4, 5, 6, 7, 8)
BATCH_AT = (Layer(128, 128, 28), Layer(512, 512, 7))
BATCHES = (1, 2, 4, 8, 16)

# What the sample of `never_slower` is drawn from; every value of every list occurs in a full run.
SAMPLE_CHANNELS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SAMPLE_SIDES = (1, 2, 3, 4, 7, 8, 13, 14, 16, 28, 32, 56, 112)
SAMPLE_BATCHES = (1, 8)
SAMPLE_STRIDES = (1, 2)
SAMPLE_KERNELS = (3, 3, 1)  # two of three are 3x3
SAMPLE_SIZE = 80
SAMPLE_MACS = 10**9  # at most: larger work is not different, only longer

PLANS_PACE = Pace(rounds=15, least=5, seconds=0.25)  # of many comparisons, of which the whole counts

TINY = (1, 8, 4, 4)
TINY_CALLS = 100  # a clock cannot tell single calls of microseconds apart


@dataclass
class Run:
    """A part being measured: how, and what has been found so far."""

    pace: Pace
    quick: bool
    progress: Progress
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rates: list[dict[str, float]] = field(default_factory=list)
    unsteady: list[str] = field(default_factory=list)

    def compare(self, group: str, label: str, facts: dict[str, Any], contenders: Iterable[Contender]) -> None:
        """Checks everybody, then measures.

        Raises:
            WrongResultError: ours is wrong. A peer that is wrong is left out and noted.
        """
        right = []
        for contender in contenders:
            try:
                check(contender)
                right.append(contender)
            except WrongResultError as error:
                if contender.name in OURS:
                    raise WrongResultError(f"{label}, {contender.name}: {error}") from error
                self.note(f"{label}: {contender.name} is left out, its result {error}")
        ms = take_turns(right, self.pace)
        for name, sample in ms.items():
            if sample.high > UNSTEADY * sample.low or sample.disturbed > sample.runs:
                self.unsteady.append(f"{label}, {name}")
        self.results.append(Result(group, label, facts, ms))

    def note(self, text: str) -> None:
        """Something to say beside the figures, once."""
        if text not in self.notes:
            self.notes.append(text)

    def each(self, title: str, work: Sequence[Any]) -> Iterable[Any]:
        """Goes through the work with a bar. Nothing redraws it meanwhile: that would run beside what is measured."""
        task = self.progress.add_task(title, total=len(work))
        for item in work:
            self.progress.update(task, description=f"{title}: {getattr(item, 'name', item)}", refresh=True)
            yield item
            self.progress.update(task, advance=1, refresh=True)

    def some(self, work: Sequence[Any]) -> list[Any]:
        """All of it, or about three spread over it where the run is quick."""
        return list(work[:: max(1, len(work) // 3)] if self.quick else work)

    def layer(self, group: str, problem: Problem) -> None:
        """One layer by ours and by everybody else."""
        contenders = [*ours.all_of(problem), *peers.of_layer(problem), *peers.one_bit_of_layer(problem)]
        label = f"{problem.layer.name} tau {problem.tau}" if group == "tau" else problem.layer.name
        self.compare(group, label, facts(problem), contenders)


def facts(problem: Problem) -> dict[str, Any]:
    """The sizes of a layer's problem."""
    layer = problem.layer
    sizes = {name: getattr(layer, name) for name in ("c_in", "c_out", "side", "kernel", "stride", "batch", "macs")}
    return {**sizes, "tau": problem.tau}


def layers(run: Run) -> None:
    """The layers of the ResNets against everybody, and the machine's rates before each."""
    for layer in run.each("3x3", list(RESNET18)):
        run.rates.append(rates.measure(widest=machine.widest()))
        run.layer("3x3", Problem(layer, TAU))
    problem = Problem(next(iter(RESNET18)), TAU)
    run.note(f"OpenVINO's 1-bit kernel is {peers.one_bit_kernel_type(problem)}")
    for layer in run.each("1x1", run.some(list(RESNET50_1X1))):
        run.layer("1x1", Problem(layer, TAU))


@dataclass(frozen=True)
class Network:
    """A network: who makes it, of what activations, and the side of its images."""

    name: str
    make: Callable[[int], nn.Module]
    side: int
    reactnet: bool = False  # whether the ReActNet of the same layers takes part


NETWORKS = (
    Network("ResNet-18", models.resnet18, 224, reactnet=True),
    Network("VGG-small", models.vgg_small, 32),
    Network("ResNet-34", models.resnet34, 224),
    Network("ResNet-50", models.resnet50, 224),
)


def networks(run: Run, *, compiled: bool) -> None:
    """Whole networks against the dense float ones, in every engine."""
    for network in run.each("network", NETWORKS[:2] if run.quick else NETWORKS):
        images = torch.randn(1, 3, network.side, network.side, generator=torch.Generator().manual_seed(SEED))
        dense = _trained(network.make(32), images)
        contenders = [ours.a32_network(dense, images), ours.a1_network(A1, _trained(network.make(1), images), images)]
        if network.reactnet:
            contenders.append(ours.a1_network(REACTNET, _trained(models.reactnet18(), images), images))
        contenders += peers.of_network(dense, images, dense(images), compiled=compiled)
        run.compare("network", network.name, {"side": network.side, "tau": TAU, "batch": 1}, contenders)


def _trained(model: nn.Module, images: Tensor) -> nn.Module:
    models.make_subbit_weights(model, TAU)
    models.calibrate(model, images)
    return model


def sweeps(run: Run) -> None:
    """Time against tau, the number of outputs, and the batch."""
    for layer in TAU_AT:
        for tau in run.each("tau", run.some(TAUS)):
            run.layer("tau", Problem(layer, tau))
    for c_out in run.each("outputs", run.some(OUTPUTS)):
        run.layer("outputs", Problem(Layer(OUTPUTS_AT.c_in, c_out, OUTPUTS_AT.side), TAU))
    for layer in BATCH_AT:
        for batch in run.each("batch", run.some(BATCHES)):
            run.layer("batch", Problem(Layer(layer.c_in, layer.c_out, layer.side, batch=batch), TAU))


def sample() -> list[Problem]:
    """Work of all sizes, the same at every call."""
    generator = random.Random(SEED)
    found: list[Problem] = []
    while len(found) < SAMPLE_SIZE:
        layer = Layer(
            c_in=generator.choice(SAMPLE_CHANNELS),
            c_out=generator.choice(SAMPLE_CHANNELS),
            side=generator.choice(SAMPLE_SIDES),
            kernel=generator.choice(SAMPLE_KERNELS),
            stride=generator.choice(SAMPLE_STRIDES),
            batch=generator.choice(SAMPLE_BATCHES),
        )
        if layer.macs <= SAMPLE_MACS:
            found.append(Problem(layer, generator.choice(TAUS)))
    return found


def never_slower(run: Run) -> None:
    """A sample of all sizes against eager PyTorch alone: what a layer would run on if it were not replaced."""
    work = sample()
    for problem in run.each("sample", work[: len(work) // 5] if run.quick else work):
        contenders = [ours.a32(problem), ours.a1(problem), *peers.torch_of_layer(problem)]
        run.compare("sample", f"{problem.layer.name} tau {problem.tau}", facts(problem), contenders)


def plans(run: Run) -> None:
    """The sample by every plan of the planner: does it choose the best?"""
    run.pace = PLANS_PACE
    work = sample()
    for problem in run.each("plans", work[: len(work) // 5] if run.quick else work):
        for bits in (32, 1):
            contenders, about = ours.plans(problem, bits)
            label = f"{problem.layer.name} tau {problem.tau} A{bits}"
            run.compare("plans", label, facts(problem) | about, contenders)
            together = run.results.pop()
            ms = {name: _of_one(s, about["calls"][name]) for name, s in together.ms.items()}
            run.results.append(replace(together, ms=ms))


def threads(run: Run) -> None:
    """Ours on one thread and on two, in turns."""
    for layer in run.each("threads", [*RESNET18, *run.some(list(RESNET50_1X1))]):
        problem = Problem(layer, TAU)
        contenders = [
            _on_threads(contender, number) for contender in ours.all_of(problem) for number in range(1, THREADS + 1)
        ]
        run.compare("threads", layer.name, facts(problem), contenders)


def _on_threads(contender: Contender, number: int) -> Contender:
    return Contender(
        on_threads(contender.name, number),
        contender.run,
        contender.expected,
        contender.as_tensor,
        before=lambda: torch.set_num_threads(number),
    )


def calls(run: Run) -> None:
    """A call that computes next to nothing: microseconds in a thousand of `ms`, a call each."""
    x = torch.ones(TINY)
    units = codebook.vanilla(TAU, seed=SEED)
    weight = PackedWeight.from_indices(torch.zeros(TINY[1], TINY[1], dtype=torch.int64), units)
    dense = weight.decode()
    expected = F.conv2d(x, dense, None, 1, 1)
    for mode in (torch.inference_mode, torch.no_grad):
        contenders = [
            Contender(A32, lambda: _many(lambda: conv(x, weight, padding=1)), expected),
            Contender(A1, lambda: _many(lambda: conv(x, weight, padding=1, activation_bits=1)), expected),
            Contender(TORCH, lambda: _many(lambda: F.conv2d(x, dense, None, 1, 1)), expected),
        ]
        with torch.inference_mode(False), mode():
            run.compare("calls", f"{'x'.join(map(str, TINY))}, {mode.__name__}", {"calls": TINY_CALLS}, contenders)
        together = run.results.pop()
        run.results.append(replace(together, ms={name: _of_one(s, TINY_CALLS) for name, s in together.ms.items()}))


def _of_one(sample: Sample, calls: int) -> Sample:
    """The milliseconds of one of several calls timed together."""
    return replace(sample, median=sample.median / calls, low=sample.low / calls, high=sample.high / calls)


def _many(call: Callable[[], Tensor]) -> Tensor:
    for _ in range(TINY_CALLS - 1):
        call()
    return call()
