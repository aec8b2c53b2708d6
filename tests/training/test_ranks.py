"""Several processes under DistributedDataParallel: the same codebooks on all, and one process's result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from image_files import write_idx
from networks import batch, network
from torch import nn
from torch.nn import functional as F

from subbit_infer import training
from subbit_infer.training import data, ranks
from subbit_infer.training.recipes import recipe
from subbit_infer.training.run import Run

STEPS = 7
HERE = Path(__file__).parent


def frozen_norms(model: nn.Module) -> nn.Module:
    """Norms of fixed statistics, which do not depend on how a batch is split."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def own_loop(method: str) -> dict[str, torch.Tensor]:
    """Trains on this rank's share of every batch; the codebooks after every step."""
    model = frozen_norms(training.prepare(network(), training.Config(method, tau=3, every=2)))
    wrapped = nn.parallel.DistributedDataParallel(model) if ranks.count() > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    seen = {}
    for step in range(STEPS):
        training.set_progress(model, step / STEPS)
        x, y = batch(step)
        share = ranks.share(8)
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x[share]), y[share]).backward()
        optimizer.step()
        training.refine_(wrapped, optimizer)
        seen |= codebooks_of(model, step)
    return seen | {f"state.{name}": value for name, value in model.state_dict().items()}


def codebooks_of(model: nn.Module, step: int) -> dict[str, torch.Tensor]:
    found = {f"{step}.{name}": weight.codebook for name, _, weight in training.prepared_layers(model)}
    return {name: codebook.clone() for name, codebook in found.items() if codebook is not None}


def without_batch_norms(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, nn.GroupNorm(4, module.num_features))
    return model


def make_run(folder: Path, method: str, norms: str) -> Run:
    model = network() if norms == "batch" else without_batch_norms(network())
    chosen = recipe("two-stage", method=method, tau=3, every=2)
    return Run("net", model, data.load(folder), chosen, epochs=2, batch=16)


def whole_run(folder: Path, method: str, norms: str) -> dict[str, torch.Tensor]:
    """The codebooks after every step of a Run, its final state and its log, by name; rank 0 leaves a checkpoint."""
    run = make_run(folder, method, norms)
    seen = {}
    for step in run.train():
        seen |= codebooks_of(run.model, step)
    if ranks.rank() == 0:
        run.save(folder / "checkpoint.safetensors")
    seen |= {f"state.{name}": value for name, value in run.model.state_dict().items()}
    seen |= {f"log.{row['epoch']}": torch.tensor(list(row.values())) for row in run.log}
    return {f"{method}.{norms}.{name}": value for name, value in seen.items()}


@pytest.mark.parametrize("method", ["snn", "clustered"])
def test_two_ranks(tmp_path, method):
    check_two_ranks(tmp_path, method)


@pytest.mark.parametrize("method", ["1-bit", "vanilla", "baseline-b"])
def test_other_methods_on_two_ranks(tmp_path, method):
    check_two_ranks(tmp_path, method)


def check_two_ranks(tmp_path, method):
    first, second = on_two_ranks(tmp_path, "own_loop", method)
    assert first.keys() == second.keys()
    for name, value in first.items():
        if "norm" not in name or "running" not in name:
            assert torch.equal(value, second[name]), name
    assert_close(first, own_loop(method))


def test_runs_on_two_ranks(tmp_path):
    write_idx(tmp_path)
    first, second = on_two_ranks(tmp_path, "whole_runs")
    assert first.keys() == second.keys()
    for name, value in first.items():  # the statistics of BatchNorm too
        assert torch.equal(value, second[name]), name
    run = make_run(tmp_path, "snn", "batch")
    with pytest.raises(ValueError, match="must be of a run with ranks = 1, got 2"):
        run.resume(tmp_path / "checkpoint.safetensors")
    for method in ("snn", "clustered"):
        assert_close(first, whole_run(tmp_path, method, "group"))


def whole_runs(folder: Path) -> dict[str, torch.Tensor]:
    with pytest.raises(ValueError, match="batch must divide by the 2 ranks, got 15"):
        Run("net", network(), data.load(folder), recipe("paper"), epochs=1, batch=15)
    found: dict[str, torch.Tensor] = {}
    for method, norms in (("snn", "group"), ("clustered", "group"), ("snn", "batch")):
        found |= whole_run(folder, method, norms)
    return found


def assert_close(many: dict[str, torch.Tensor], alone: dict[str, torch.Tensor]) -> None:
    for name, value in alone.items():
        torch.testing.assert_close(
            many[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def on_two_ranks(tmp_path, *what: str) -> list[dict[str, torch.Tensor]]:
    """What this file's main leaves on each of two ranks."""
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "WORLD_SIZE": "2",
        "RENDEZVOUS": str(tmp_path / "rendezvous"),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), *what], env=environment | {"RANK": str(rank)}, cwd=HERE
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]


if __name__ == "__main__":
    _, folder, what, *methods = sys.argv
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{os.environ['RENDEZVOUS']}", rank=rank, world_size=2
    )
    found = own_loop(*methods) if what == "own_loop" else whole_runs(Path(folder))
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
