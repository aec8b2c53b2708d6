"""Every network can be trained as it is: prepared, stepped, finished, and converted without loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subbit_infer import convert, models, train

TAU = 3
CLASSES = 4

Size = tuple[int, int]

# A network's name, its activations, the channels and the size of images, and how many layers are sub-bit.
NETWORKS = [
    pytest.param("resnet8", 32, 1, (8, 8), 6, id="resnet8-A32"),
    pytest.param("resnet20", 32, 3, (8, 8), 18, id="resnet20-A32"),
    pytest.param("resnet20", 1, 1, (8, 8), 18, id="resnet20-A1"),
    pytest.param("resnet18", 32, 1, (8, 8), 16, id="resnet18-A32"),
    pytest.param("resnet18", 1, 3, (8, 8), 16, id="resnet18-A1"),
    pytest.param("resnet18", 1, 3, (65, 65), 16, id="resnet18-A1-imagenet"),
    pytest.param("resnet34", 32, 3, (8, 8), 32, id="resnet34-A32"),
    pytest.param("resnet50", 32, 1, (16, 16), 48, id="resnet50-A32"),
    pytest.param("resnet50", 1, 3, (16, 16), 48, id="resnet50-A1"),
    pytest.param("vgg-small", 32, 3, (8, 12), 5, id="vgg_small-A32"),
    pytest.param("vgg-small", 1, 1, (28, 28), 5, id="vgg_small-A1"),
    pytest.param("reactnet18", 1, 1, (12, 12), 16, id="reactnet18"),
    pytest.param("reactnet18", 1, 3, (65, 65), 16, id="reactnet18-imagenet"),
]


def prepared(name: str, bits: int, channels: int, size: Size) -> tuple[nn.Module, Tensor]:
    """A network and images of it, with the gradients of its loss on them."""
    model = models.network_of(name, bits, CLASSES, channels, size)
    train.prepare(model, train.Config(tau=TAU, activation_bits=bits, every=1))
    x = torch.randn(CLASSES, channels, *size, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(model(x), torch.arange(CLASSES)).backward()
    return model, x


def step_and_convert(name: str, bits: int, channels: int, size: Size, body: int) -> None:
    model, x = prepared(name, bits, channels, size)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    optimizer.step()
    train.refine_(model, optimizer)
    models.calibrate(model.eval(), x)  # stands for more steps: running statistics of one let values grow to 1e9
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(train.finish(model)(x), expected)
    converted, report = convert(model, x, verify=True)
    assert len(report.converted) == body
    assert {layer.activation_bits for layer in report.converted} == {bits}
    assert all(layer.tau <= TAU for layer in report.converted)
    with torch.no_grad():
        torch.testing.assert_close(converted(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_the_smallest() -> None:
    step_and_convert("resnet8", 1, 3, (8, 8), 6)


@pytest.mark.parametrize(("name", "bits", "channels", "size", "body"), NETWORKS)
def test_every_network(name: str, bits: int, channels: int, size: Size, body: int) -> None:
    step_and_convert(name, bits, channels, size, body)


def without_gradient(name: str, bits: int, size: Size) -> list[str]:
    model, _ = prepared(name, bits, 3, size)
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet18", "vgg-small"])
def test_gradients_reach_every_parameter(name: str) -> None:
    assert without_gradient(name, 32, (8, 8)) == []


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet18", "vgg-small", "reactnet18"])
def test_gradients_reach_every_parameter_through_signs(name: str) -> None:
    assert without_gradient(name, 1, (16, 16)) == []
