"""The benchmarks' own arithmetic: a wrong speed-up would be believed."""

from __future__ import annotations

import time
from collections import Counter

import pytest
import torch

import ours
from bars import Bar, all_bars
from grid import Grid
from layers import RESNET18, RESNET34, RESNET50_1X1, Layer, Problem
from rates import ceiling
from results import (
    A1,
    A32,
    FLOAT_PEERS,
    ONE_BIT,
    OPENVINO,
    TORCH,
    Record,
    Result,
    load,
    over_best_plan,
    total_of,
    total_speedup,
)
from subbit_infer import conv, models
from tables import of_plans
from timing import Contender, Pace, Sample, WrongResultError, check, take_turns


def result(label: str, **ms: float) -> Result:
    names = {"ours": A32, "a1": A1, "torch": TORCH, "openvino": OPENVINO, "one_bit": ONE_BIT}
    return Result("3x3", label, {}, {names[name]: Sample(v, v, v, 5, 0) for name, v in ms.items()})


def contender(name: str, seconds: float, value: float = 1.0, bound: float = 0.0) -> Contender:
    def run() -> torch.Tensor:
        time.sleep(seconds)
        return torch.full((2,), value)

    return Contender(name, run, torch.ones(2), bound=bound)


@pytest.mark.parametrize(
    ("make", "counts"),
    [(models.resnet18, RESNET18), (models.resnet34, RESNET34), (models.resnet50, RESNET50_1X1)],
)
def test_the_layers_are_those_of_the_network(make, counts):
    found: Counter[Layer] = Counter()

    def count(conv: models.BodyConv2d, args: tuple[torch.Tensor]) -> None:
        found[Layer(conv.in_channels, conv.out_channels, args[0].shape[-1], conv.kernel_size[0], conv.stride[0])] += 1

    model = make()
    for _, layer in models.body_convs(model):
        layer.register_forward_pre_hook(count)
    with torch.inference_mode():
        model(torch.zeros(1, 3, 224, 224))
    kernel = next(iter(counts)).kernel
    assert {layer: number for layer, number in found.items() if layer.kernel == kernel} == counts


@pytest.mark.parametrize("layer", [Layer(16, 8, 5), Layer(16, 8, 6, stride=2, batch=2), Layer(16, 24, 4, kernel=1)])
def test_problems_have_one_exact_answer(layer):
    problem = Problem(layer, 3)
    options = {"stride": layer.stride, "padding": layer.padding}
    assert torch.equal(conv(problem.x, problem.weight, **options), problem.expected_a32)
    assert torch.equal(conv(problem.x, problem.weight, activation_bits=1, **options), problem.expected_a1)
    assert (problem.x != 0).all()


def test_macs_and_names():
    assert Layer(64, 128, 56, stride=2).macs == 64 * 128 * 9 * 28 * 28
    assert Layer(64, 128, 7, stride=2, batch=8).name == "64>128@7 /2 x8"
    assert Layer(8, 8, 7, kernel=1).name == "8>8@7 1x1"


def test_each_layer_has_its_own_best_rival():
    results = [result("a", ours=1, torch=4, openvino=2), result("b", ours=2, torch=4, openvino=8)]
    counts = {"a": 3, "b": 1}
    assert total_speedup(results, counts, A32, FLOAT_PEERS) == (3 * 2 + 4) / (3 * 1 + 2)
    assert total_speedup(results, counts, A1, FLOAT_PEERS) is None
    assert total_speedup(results, {"a": 1, "c": 1}, A32, FLOAT_PEERS) is None
    total = total_of(results, counts, "all")
    assert total is not None
    assert {name: sample.median for name, sample in total.ms.items()} == {A32: 5, TORCH: 16, OPENVINO: 14}
    assert results[0].speedup(A32, (ONE_BIT,)) is None


def test_a_record_comes_back_from_its_file(tmp_path):
    record = Record("layers", {"threads": 1}, [result("a", ours=1, torch=4)], ["note"], {"zmm fma": 3.5})
    assert load(record.save(tmp_path)) == record


def test_ceilings():
    rates = {"ymm load-add": 7.0, "zmm load-add": 3.5, "zmm vpermb+add": 3.0, "zmm fma": 4.0}
    assert ceiling(rates, "load-add", 9) == 3.5 * 16 * 9
    assert ceiling(rates, "vpermb+add", 9) == 3.0 * 576
    assert ceiling(rates, "fma", 9) == 4.0 * 16
    assert ceiling({"ymm load-add": 7.0}, "load-add", 9) == 7.0 * 8 * 9
    assert ceiling({}, "vpermb+add", 9) is None


def test_what_was_not_measured_is_not_met():
    assert {bar.met for bar in all_bars({})} == {None}
    assert Bar("", 2, 1.9, "x").met is False
    assert Bar("", 2, 1.9, "x", at_least=False).met is True


def planned(label: str, chosen: str, activation_bits: int, **ms: float) -> Result:
    facts = {"chosen": chosen, "activation_bits": activation_bits, "predicted_us": dict.fromkeys(ms, 1.0)}
    return Result("plans", label, facts, {name: Sample(v, v, v, 5, 0) for name, v in ms.items()})


def test_the_planner_against_the_best_plan():
    results = [
        planned("a", "rows", 32, rows=1.0, dense=2.0),
        planned("b", "rows", 32, rows=2.2, dense=2.0),
        planned("c", "dense", 32, rows=1.0, dense=3.0),
        planned("d", "bits", 1, rows=2.0, bits=1.0, dense=3.0),
    ]
    assert [over_best_plan(result) for result in results] == [1, 1.1, 3, 1]
    bar = next(bar for bar in all_bars({"plans": Record("plans", {}, results, [], {})}) if "planner" in bar.what)
    assert (bar.measured, bar.where, bar.met) == (75, "c", False)
    summary, worst = of_plans("plans", results)
    assert summary.rows[0] == ["A32", "3", "1.100x", "3.000x", "3.000x", "67 %", "33 %"]
    assert summary.rows[1] == ["A1", "1", "1.000x", "1.000x", "1.000x", "100 %", "100 %"]
    assert summary.totals == [["all", "4", "1.050x", "3.000x", "3.000x", "75 %", "50 %"]]
    assert worst.rows[0] == ["c", "dense", "rows", "3000.0", "1.0", "1000.0", "1.0", "3.00x"]


@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("layer", [Layer(16, 8, 5), Layer(16, 24, 4, kernel=1, stride=2, batch=2)])
def test_every_plan_computes_the_same(layer, activation_bits):
    contenders, facts = ours.plans(Problem(layer, 3), activation_bits)
    for one in contenders:
        check(one)
    assert facts["chosen"] in {one.name for one in contenders} >= {"rows", "dense"}


def test_turns_tell_the_fast_from_the_slow():
    ms = take_turns([contender(A32, 0.001), contender(TORCH, 0.003)], Pace(rounds=5, least=3, seconds=1))
    assert 1 <= ms[A32].median < 3 <= ms[TORCH].median
    assert ms[A32].low <= ms[A32].median <= ms[A32].high
    assert ms[A32].runs >= 3


@pytest.mark.parametrize("value", [1.01, float("nan"), float("inf")])
def test_a_wrong_result_is_not_measured(value):
    with pytest.raises(WrongResultError):
        check(contender(A32, 0, value, bound=1e-3))


def test_a_grid_as_markdown():
    grid = Grid("title", ["", "ms"], [["a", "1"]], [["all", "2"]])
    assert grid.markdown() == "|  | ms |\n| :--- | ---: |\n| a | 1 |\n| **all** | **2** |\n"
