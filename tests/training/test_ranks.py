"""Several processes under DistributedDataParallel: the same codebooks on all, and one process's result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import batch, network
from torch import nn
from torch.nn import functional as F

from subbit_infer import training

STEPS = 7
HERE = Path(__file__).parent


def frozen_norms(model: nn.Module) -> nn.Module:
    """Norms of fixed statistics, which do not depend on how a batch is split."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def run(method: str, rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """Trains on this rank's share of every batch; the codebooks after every step."""
    torch.set_num_threads(1)
    model = frozen_norms(training.prepare(network(), training.Config(method, tau=3, every=2)))
    wrapped = nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    seen = {}
    for step in range(STEPS):
        training.set_progress(model, step / STEPS)
        x, y = batch(step)
        share = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x[share]), y[share]).backward()
        optimizer.step()
        training.refine_(wrapped, optimizer)
        for name, _, weight in training.prepared_layers(model):
            if weight.codebook is not None:
                seen[f"{step}.{name}"] = weight.codebook.clone()
    return seen | {f"state.{name}": value for name, value in model.state_dict().items()}


@pytest.mark.parametrize("method", ["snn", "clustered"])
def test_two_ranks(tmp_path, method):
    check_two_ranks(tmp_path, method)


@pytest.mark.parametrize("method", ["1-bit", "vanilla", "baseline-b"])
def test_other_methods_on_two_ranks(tmp_path, method):
    check_two_ranks(tmp_path, method)


def check_two_ranks(tmp_path, method):
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "WORLD_SIZE": "2",
        "RENDEZVOUS": str(tmp_path / "rendezvous"),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, method, str(tmp_path / f"{rank}.pt")],
            env=environment | {"RANK": str(rank)},
            cwd=HERE,
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        if "norm" not in name or "running" not in name:
            assert torch.equal(value, second[name]), name
    alone = run(method, 0, 1)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    _, method, path = sys.argv
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{os.environ['RENDEZVOUS']}", rank=rank, world_size=2
    )
    torch.save(run(method, rank, 2), path)
    torch.distributed.destroy_process_group()
