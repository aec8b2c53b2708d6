"""The networks: sub-bit equals dense, the body is what it should be, weights are repeatable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from subbit_infer import models
from subbit_infer.nn import SubbitConv2d

TAU = 5

# What makes a network of given activations, its body's layers by kernel size, and the side of a small image.
NETWORKS = [
    pytest.param(models.resnet18, 32, {3: 16}, 64, id="resnet18-A32"),
    pytest.param(models.resnet18, 1, {3: 16}, 64, id="resnet18-A1"),
    pytest.param(models.resnet34, 32, {3: 32}, 32, id="resnet34-A32"),
    pytest.param(models.resnet34, 1, {3: 32}, 32, id="resnet34-A1"),
    pytest.param(models.resnet50, 32, {1: 32, 3: 16}, 32, id="resnet50-A32"),
    pytest.param(models.resnet50, 1, {1: 32, 3: 16}, 32, id="resnet50-A1"),
    pytest.param(models.vgg_small, 32, {3: 5}, 32, id="vgg_small-A32"),
    pytest.param(models.vgg_small, 1, {3: 5}, 32, id="vgg_small-A1"),
    pytest.param(lambda bits, seed=0: models.reactnet18(seed=seed), 1, {3: 16}, 64, id="reactnet18"),
]
Make = Callable[..., nn.Module]


def images(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("make", "bits", "body", "side"), NETWORKS)
@torch.inference_mode()
def test_subbit_equals_dense(make: Make, bits: int, body: dict[int, int], side: int) -> None:
    dense = make(bits)
    models.make_subbit_weights(dense, TAU)
    models.calibrate(dense, images(side))
    subbit = models.to_subbit(dense)
    expected, actual = dense(images(side)), subbit(images(side))
    assert expected.isfinite().all()
    assert not torch.equal(expected[0], expected[1])
    if bits == 1:  # the sums are exact: see make_subbit_weights
        assert torch.equal(actual, expected)
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(("make", "bits", "body", "side"), NETWORKS)
def test_body(make: Make, bits: int, body: dict[int, int], side: int) -> None:
    dense = make(bits)
    convs = models.body_convs(dense)
    assert {kernel: sum(c.kernel_size == (kernel, kernel) for _, c in convs) for kernel in body} == body
    assert len(convs) == sum(body.values())
    assert all(conv.activation_bits == bits for _, conv in convs)
    models.make_subbit_weights(dense, TAU)
    subbit = models.to_subbit(dense)
    for name, conv in models.body_convs(dense):
        layer = subbit.get_submodule(name)
        assert isinstance(layer, SubbitConv2d)
        assert layer.activation_bits == bits
        assert layer.tau <= TAU
        assert layer.unit == ((1, 3, 3) if conv.kernel_size == (3, 3) else (8, 1, 1))


@pytest.mark.parametrize("make", [models.resnet18, models.vgg_small, models.reactnet18])
def test_weights_depend_on_the_seed_alone(make: Make) -> None:
    state = torch.get_rng_state()
    first, again, other = (list(make(seed=seed).state_dict().values()) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_calibrate_puts_everything_else_back() -> None:
    model = models.vgg_small()
    models.calibrate(model, images(32))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(not norm.training and norm.momentum == 0.1 for norm in norms)
    assert all(norm.running_mean is not None and norm.running_mean.any() for norm in norms)


@pytest.mark.parametrize("make", [models.resnet18, models.vgg_small])
def test_other_activations_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="activation_bits must be 1 or 32, got 8"):
        make(8)
