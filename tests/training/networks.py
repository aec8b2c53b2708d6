"""Small networks to train, and batches for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subbit_infer import training


class Net(nn.Module):
    """A stem, a residual block of 3x3 convolutions, a 1x1 convolution and a linear layer."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, 2, 1, bias=False)
        self.norm0 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(2 * channels)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.fc = nn.Linear(2 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.norm0(self.stem(x)))
        x = self.relu2(self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x))))) + x)
        x = self.relu3(self.norm3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))


def network(seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net()


def batch(seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 1, 12, 12, generator=generator), torch.randint(0, 10, (size,), generator=generator)


def optimizer_of(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int, total: int = 20) -> None:
    """Steps first to last of a run of ``total``."""
    for step in range(first, last):
        training.set_progress(model, step / total)
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        training.refine_(model, optimizer)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different
