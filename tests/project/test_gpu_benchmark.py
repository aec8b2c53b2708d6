"""The GPU benchmark's own arithmetic, and what it says where there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import gpu
import gpu_predictions
import gpu_tables
import report
from layers import RESNET18
from results import Record, Result
from subbit_infer.backends.cuda import runtime
from timing import Sample


def record(group: str = "batch 1 tau 5 hot", rates: dict[str, float] | None = None, **changes: float) -> Record:
    """Every layer takes 2 ms by ours and 3 ms by cuDNN; changes is what some layer takes by ours."""
    results = []
    for layer in RESNET18:
        ms = dict.fromkeys((*gpu_tables.PLANNED.values(), "f32 sharing"), changes.get(layer.name, 2.0))
        ms |= {gpu_tables.CUDNN: 3.0, gpu_tables.CUDNN_F16: 3.0}
        samples = {name: Sample(value, value, value, 5, 0) for name, value in ms.items()}
        results.append(Result(group, layer.name, {"macs": layer.macs}, samples))
    return Record("cuda", {"gpu": "NVIDIA H100"}, results, ["a note"], rates or {"half_macs": 400.0})


def test_totals_count_each_layer_as_often_as_it_occurs():
    eighteen, thirty_four = gpu_tables.totals(record().results)
    assert eighteen.ms["f32 planned"].median == 16 * 2
    assert eighteen.ms[gpu_tables.CUDNN].median == 16 * 3
    assert thirty_four.ms["f32 planned"].median == 32 * 2
    (slower, _) = gpu_tables.totals(record(**{"64>64@56": 5.0}).results)
    assert slower.ms["f32 planned"].median == 12 * 2 + 4 * 5


def test_promises():
    def verdicts(measured: Record) -> dict[str, bool | None]:
        return {bar.what: bar.met for bar in gpu_tables.bars(measured)}

    # 2 ms : 3 ms is 1.5x. A layer 256>256@14 gathers 256 * 256 * 196 * 4 bytes, in 2 ms: 0.0257 * 10^12 a second.
    large = verdicts(record("batch 256 tau 5 hot", {"shared_bytes": 0.04}))
    assert large["f32 sharing, 256>256@14, batch 256 : bytes of shared memory"] is True
    assert large["f32 sharing : cuDNN f32, 256>256@14, batch 256"] is True
    assert large["f32 : cuDNN f32, tau 5, ResNet-18, batch 256"] is False
    assert large["f16 : cuDNN f16, tau 5, ResNet-18, batch 256"] is True
    assert large["f16 : cuDNN f16, tau 2, ResNet-18, batch 256"] is None
    assert large["f16 : cuDNN f16, batch 1 in graphs, every layer"] is None
    less = verdicts(record("batch 256 tau 5 hot", {"shared_bytes": 0.05}))
    assert less["f32 sharing, 256>256@14, batch 256 : bytes of shared memory"] is False
    small = gpu_tables.bars(record(**{"64>64@56": 5.0}))
    slowest = {bar.what: (bar.met, bar.where) for bar in small if "every layer" in bar.what}
    assert slowest == {
        "f16 : cuDNN f16, batch 1 in graphs, every layer": (False, "f16 64>64@56, batch 1 tau 5 hot"),
        "planned : cuDNN of the same dtype, every layer and batch": (False, "f16 64>64@56, batch 1 tau 5 hot"),
    }


def test_the_tables_name_all_that_was_measured():
    lines = gpu.show(record()).splitlines()
    assert lines[0] == "NVIDIA H100"
    totals = lines[lines.index("") + 1 :]
    assert totals[2].split() == ["ResNet-18", "batch", "1", "tau", "5", "hot", *["32.000"] * 4, "48.000", "48.000"]
    assert "half_macs 400" in lines[-2]
    assert lines[-1] == "a note"


def test_the_report_names_the_device_and_shows_the_tables():
    measured = record("batch 256 tau 5 hot")
    where = {"command": "benchmarks/gpu.py", "torch": "2.13", "cudnn": 91000, "cuda": {"cuda": "13.0"}}
    measured.environment.update(where, date="today", commit="abc")
    text = report.of_gpu(measured)
    assert text.startswith("## On a GPU: NVIDIA H100\n\n`benchmarks/gpu.py`: torch 2.13, cuDNN 91000, CUDA 13.0, today")
    for grid in (gpu_tables.of_totals(measured), gpu_tables.of_rates(measured), gpu_tables.of_bars(measured)):
        assert f"### {grid.title}\n\n{grid.markdown()}" in text
    assert text.endswith("- a note.\n")
    assert "Not yet measured" in report.of_gpu(None)


def test_results_are_checked():
    right = torch.tensor([1.0, -100.0])
    for difference, bound, is_right in ((0.0, 0.0, True), (0.5, 0.0, False), (0.5, 0.01, True), (2.0, 0.01, False)):
        contender = gpu.Contender("any", lambda by=difference: right + by, right, bound)
        assert gpu.is_right(contender) == is_right
    assert not gpu.is_right(gpu.Contender("any", lambda: right[:1], right, 1.0))


@pytest.mark.skipif(runtime.reason() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == gpu.NO_GPU == 3
    assert capsys.readouterr().err == f"bench-cuda: nothing is measured: {runtime.reason()}\n"


def test_the_page_on_gpus_has_the_planners_predictions():
    page = Path(__file__).parent.parent.parent / "docs" / "gpu.md"
    assert gpu_predictions.table().markdown() in page.read_text()


def test_what_is_written_is_json(tmp_path):
    written = record().save(tmp_path)
    assert json.loads(written.read_text())["environment"]["gpu"] == "NVIDIA H100"
