"""The networks: sub-bit equals dense, the body is what it should be, weights are repeatable."""

from __future__ import annotations

import copy
import io
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from helpers import random_weight
from torch import nn

import subbit_infer
from subbit_infer import models
from subbit_infer.models.reactnet import Shift
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


def trained(make: Make, bits: int, side: int) -> nn.Module:
    """A dense network whose body can be sub-bit."""
    dense = make(bits)
    models.make_subbit_weights(dense, TAU)
    models.calibrate(dense, images(side))
    return dense


def powers(x: torch.Tensor) -> torch.Tensor:
    """The nearest power of two to each magnitude."""
    return x.abs().log2().round().exp2()


@torch.no_grad()
def make_exact(model: nn.Module, images: torch.Tensor) -> None:
    """Rounds a network's numbers, in place, so far that float32 holds every value in it exactly.

    Folding a BatchNorm then changes no value, though it changes what is added first: without it a sign within rounding
    of 0 could flip, and everything after it. Scales are powers of two; what adds up through the shortcuts, where bits
    pile up from layer to layer, is -1, 0 or +1 times it. The linear layer goes, whose sums are too long.
    """
    generator = torch.Generator().manual_seed(0)
    body = {conv for _, conv in models.body_convs(model)}
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            if module in body:
                weight.copy_(weight.sign() * powers(weight))
            elif module.in_channels == 3:
                weight.copy_((weight * 16).round() / 16)
            else:
                weight.copy_(weight.sign() * (weight.abs() > 2 * weight.std()))
        elif isinstance(module, Shift):
            module.bias.copy_((module.bias * 8).round() / 8)
        elif isinstance(module, nn.PReLU):
            module.weight.copy_(torch.randint(-1, 3, module.weight.shape, generator=generator))
    models.calibrate(model, images)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
            module.running_mean = (module.running_mean * 4).round() / 4
            module.running_var = powers(module.running_var.sqrt().clamp(min=0.25)) ** 2
            module.bias.copy_((module.bias * 8).round() / 8)
            module.weight.copy_(torch.randint(0, 2, module.weight.shape, generator=generator) + 1)
    model.fc = nn.Identity()


def folded(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """The network as it is deployed."""
    return subbit_infer.convert(model, x, fold=True).model


@pytest.mark.parametrize(
    ("make", "side"), [(models.resnet18, 32), (models.resnet50, 64), (models.vgg_small, 32)]
)  # 64: with statistics of two pixels a ResNet-50 makes too much of rounding errors
@torch.no_grad()
def test_folded_equals_unfolded(make: Make, side: int) -> None:
    subbit = models.to_subbit(trained(make, 32, side))
    expected, actual = subbit(images(side)), folded(subbit, images(side))(images(side))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("make", [models.resnet18, models.resnet50, models.vgg_small, lambda bits: models.reactnet18()])
@torch.no_grad()
def test_folded_has_the_same_bits_where_nothing_is_rounded(make: Make) -> None:
    dense = make(1)
    models.make_subbit_weights(dense, TAU)
    x = (images(32) * 8).round() / 8
    make_exact(dense, x)
    expected = dense(x)
    without_rounding = copy.deepcopy(dense).double()(x.double())
    assert torch.equal(expected.double(), without_rounding)
    assert not torch.equal(expected[0], expected[1])
    assert torch.equal(folded(dense, x)(x), expected)


@pytest.mark.parametrize(
    ("make", "bits", "side", "outputs"),
    [
        (models.resnet18, 32, 64, {"float": 16}),
        (models.resnet18, 1, 64, {"packed": 8, "both": 7, "float": 1}),
        (models.vgg_small, 1, 32, {"packed": 4, "float": 1}),
        (lambda bits: models.reactnet18(), 1, 64, {"both": 15, "float": 1}),
    ],
)
def test_nothing_is_left_to_fold(make: Make, bits: int, side: int, outputs: dict[str, int]) -> None:
    dense = make(bits)
    models.make_subbit_weights(dense, TAU)
    network = folded(dense, images(side))
    assert isinstance(network, torch.fx.GraphModule)
    modules = list(network.modules())
    assert not any(isinstance(module, nn.BatchNorm2d | nn.PReLU) for module in modules)
    operators = [str(node.target) for node in network.graph.nodes if node.op == "call_function"]
    assert not any("norm" in operator or "prelu" in operator for operator in operators)
    assert sum("relu" in operator or "hardtanh" in operator for operator in operators) <= 1  # the stem's
    assert Counter(module.output for module in modules if isinstance(module, SubbitConv2d)) == outputs
    assert not any(module.training for module in modules)
    assert not any(buffer.requires_grad for buffer in network.buffers())


@pytest.mark.parametrize("bits", [1, 32])
@torch.no_grad()
def test_a_maximum_is_not_taken_after_a_batch_norm_that_turns_the_order_around(bits: int) -> None:
    dense = models.vgg_small(bits)
    models.make_subbit_weights(dense, TAU)
    x = (images(32) * 8).round() / 8
    make_exact(dense, x)
    norms = [module for module in dense.modules() if isinstance(module, nn.BatchNorm2d)]
    norms[1].weight[::2] *= -1
    network = folded(dense, x)
    assert isinstance(network, torch.fx.GraphModule)
    assert sum("batch_norm" in str(node.target) for node in network.graph.nodes) == 1
    rtol, atol = (0, 0) if bits == 1 else (1e-5, 1e-3)
    torch.testing.assert_close(network(x), dense(x), rtol=rtol, atol=atol)


@torch.no_grad()
def test_folding_rounds_once() -> None:
    indices, codebook = random_weight((1, 3, 3), 16, 8, 32)
    generator = torch.Generator().manual_seed(1)
    scale, bias, gamma, beta, mean, before = torch.randn(6, 16, generator=generator).unbind()
    norm = nn.BatchNorm2d(16).eval()
    norm.weight.copy_(gamma)
    norm.bias.copy_(beta)
    norm.running_mean = mean
    norm.running_var = torch.rand(16, generator=generator)
    conv = SubbitConv2d.from_indices(indices, codebook, scale=scale, bias=bias, padding=1)
    shift = Shift(16)
    shift.bias.copy_(before[:, None, None])
    model = nn.Sequential(conv, norm, shift, nn.ReLU()).eval()
    x = torch.randn(2, 8, 5, 5, generator=generator)
    (layer,) = (module for module in folded(model, x).modules() if isinstance(module, SubbitConv2d))
    gain = gamma.double() / (norm.running_var.double() + norm.eps).sqrt()
    assert layer.scale is not None
    assert layer.bias is not None
    torch.testing.assert_close(layer.scale, (scale * gain).float(), rtol=1e-7, atol=0)
    expected = (bias - mean.double()) * gain + beta + before
    torch.testing.assert_close(layer.bias, expected.float(), rtol=1e-7, atol=1e-9)
    assert layer.activation == "relu"
    torch.testing.assert_close(layer(x), model(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_folded_networks_are_copies_that_can_be_saved() -> None:
    subbit = models.to_subbit(trained(lambda bits: models.reactnet18(), 1, 32))
    before = {name: tensor.clone() for name, tensor in subbit.state_dict().items()}
    with torch.inference_mode():
        network, other = folded(subbit, images(32)), folded(subbit, images(32))
    assert not any(
        tensor.is_inference()
        for layer in network.modules()
        if isinstance(layer, SubbitConv2d)
        for tensor in layer.buffers()
    )
    expected = network(images(32))
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    for tensor in other.state_dict().values():
        tensor.zero_()
    assert not torch.equal(other(images(32)), expected)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(images(32)), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in subbit.state_dict().items())


def test_fuse_is_the_one_conversion() -> None:
    dense = trained(lambda bits: models.vgg_small(bits), 1, 32)
    with pytest.warns(DeprecationWarning, match="convert"):
        fused = models.fuse(models.to_subbit(dense))
    with torch.no_grad():
        assert torch.equal(fused(images(32)), folded(dense, images(32))(images(32)))
