"""The GPU benchmark's own arithmetic, and what it says where there is no GPU."""

from __future__ import annotations

import json

import pytest
import torch

import gpu
from layers import RESNET18
from results import Record, Result
from subbit_infer import _native_cuda
from timing import Sample

FACTS = {"batch": 1}


def record(**changes) -> Record:
    """Every layer takes 2 ms by ours and 3 ms by cuDNN; changes is what some layer takes by ours."""
    results = []
    for layer in RESNET18:
        ms = {"f32 planned": changes.get(layer.name, 2.0), gpu.CUDNN: 3.0}
        samples = {name: Sample(value, value, value, 5, 0) for name, value in ms.items()}
        results.append(Result("batch 1 tau 5 hot", layer.name, FACTS, samples))
    return Record("cuda", {"gpu": "NVIDIA H100"}, results, ["a note"], {"half_macs": 400.0})


def test_totals_count_each_layer_as_often_as_it_occurs():
    eighteen, thirty_four = gpu.totals(record().results)
    assert eighteen.ms["f32 planned"].median == 16 * 2
    assert eighteen.ms[gpu.CUDNN].median == 16 * 3
    assert thirty_four.ms["f32 planned"].median == 32 * 2
    (slower, _) = gpu.totals(record(**{"64>64@56": 5.0}).results)
    assert slower.ms["f32 planned"].median == 12 * 2 + 4 * 5


def test_the_table_names_all_that_was_measured():
    lines = gpu.show(record()).splitlines()
    assert lines[0].startswith("NVIDIA H100: ")
    assert lines[2].split()[:6] == ["ResNet-18", "batch", "1", "tau", "5", "hot"]
    assert lines[2].split()[6:] == ["32.000", "-", "-", "-", "48.000", "-", "-", "-"]
    assert "half_macs 400" in lines[-2]
    assert lines[-1] == "a note"


def test_results_are_checked():
    right = torch.tensor([1.0, -100.0])
    for difference, bound, is_right in ((0.0, 0.0, True), (0.5, 0.0, False), (0.5, 0.01, True), (2.0, 0.01, False)):
        contender = gpu.Contender("any", lambda by=difference: right + by, right, bound)
        assert gpu.is_right(contender) == is_right
    assert not gpu.is_right(gpu.Contender("any", lambda: right[:1], right, 1.0))


@pytest.mark.skipif(_native_cuda.reason() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == gpu.NO_GPU == 3
    assert capsys.readouterr().err == f"bench-cuda: nothing is measured: {_native_cuda.reason()}\n"


def test_what_is_written_is_json(tmp_path):
    written = record().save(tmp_path)
    assert json.loads(written.read_text())["environment"]["gpu"] == "NVIDIA H100"
