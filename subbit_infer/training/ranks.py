"""The ranks of a run: processes that train one network together, each on its share of every batch.

Without ``torch.distributed``, or with one process, all of it does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Joins the ranks that ``torchrun`` started: by gloo on the CPU, by NCCL on CUDA.

    Args:
        device: that this rank trains on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield
    distributed.destroy_process_group()  # not after a failure: it could wait for ranks that wait for this one


def count() -> int:
    """How many ranks there are."""
    return distributed.get_world_size() if _are_there() else 1


def rank() -> int:
    """The number of this one: 0 is the one that writes files."""
    return distributed.get_rank() if _are_there() else 0


def _are_there() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def share(size: int) -> slice:
    """This rank's part of a batch of so many images; they divide by the ranks."""
    part = size // count()
    return slice(rank() * part, (rank() + 1) * part)


def sum_(values: Tensor) -> Tensor:
    """Adds values up over the ranks, in place; the same bits on all."""
    if count() > 1:
        distributed.all_reduce(values)
    return values


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether a flag is set on any rank: what ranks do together they must decide together."""
    return bool(sum_(torch.tensor(float(flag), device=device)))


def wrapped(model: nn.Module) -> nn.Module:
    """The model as it is called in training: its gradients become their mean over the ranks.

    Buffers are not broadcast before each call, since every step leaves the same on all ranks.
    """
    return nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False) if count() > 1 else model


@torch.no_grad()
def mean_statistics_(model: nn.Module) -> None:
    """Makes the running statistics of every BatchNorm their mean over the ranks, in one message.

    In a step each rank normalizes by its own share's statistics, as is usual with DistributedDataParallel:
    ``SyncBatchNorm`` is for CUDA only. So the mean is the whole batch's; the variance lacks that between the shares.
    """
    if count() == 1:
        return
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    statistics = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
    if statistics:
        mean = sum_(torch.cat(statistics)) / count()
        for value, part in zip(statistics, mean.split([len(value) for value in statistics]), strict=True):
            value.copy_(part)
