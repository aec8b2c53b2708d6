"""The body of a network: the convolutions stored in fewer than one bit per weight, dense and sub-bit."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from subbit_infer.core.codebook import assign, decode, default_unit, vanilla
from subbit_infer.nn import SubbitConv2d

Model = TypeVar("Model", bound=nn.Module)


class BodyConv2d(nn.Conv2d):
    """A dense 3x3 or 1x1 convolution of the body, without bias, that keeps the size of its input at stride 1.

    Args:
        in_channels: Channels of the input; a multiple of 8 where the kernel is 1x1, whose units are 8 channels long.
        out_channels: Channels of the output.
        kernel: 3 or 1.
        stride: 1 or more.
        activation_bits: 32, or 1 to see only the signs of the input; zeros, and so the padding, contribute nothing.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, activation_bits: int = 32
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        if activation_bits not in (1, 32):
            raise ValueError(f"activation_bits must be 1 or 32, got {activation_bits}")
        self.activation_bits = activation_bits

    def forward(self, x: Tensor) -> Tensor:
        """Convolves ``x``, or ``x.sign()`` where activations are binary."""
        return super().forward(x.sign() if self.activation_bits == 1 else x)


def body_convs(model: nn.Module) -> list[tuple[str, BodyConv2d]]:
    """The body's convolutions by name, in order: sixteen in a ResNet-18."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, BodyConv2d)]


@torch.no_grad()
def make_subbit_weights(model: nn.Module, tau: int = 5, seed: int = 0) -> None:
    """Replaces the body's weights, in place, by ones that a sub-bit layer can hold.

    A weight becomes alpha times its nearest codewords of a random codebook (Vanilla-SNN), another one for each layer;
    alpha, one per output channel, is the mean magnitude of what it replaces, at float16's precision. That makes sums of
    +-alpha exact in float32: alpha has 11 significant bits and a layer adds up at most 4608 < 2^13 of them, 24 bits. So
    a network of binary activations gives the same bits whatever the order of addition; otherwise an activation within
    rounding of zero would flip its sign, and the next layers would jump.

    Args:
        model: The network; its body is what `body_convs` finds.
        tau: Bits per index: 2^tau distinct units per layer, tau / 9 bits per weight of a 3x3 layer, tau / 8 of a
            1x1 layer.
        seed: The first layer's seed; the next layer takes the next number.
    """
    for number, (_, conv) in enumerate(body_convs(model)):
        height, width = conv.kernel_size
        codebook = vanilla(tau, unit=default_unit((height, width)), seed=seed + number)
        units = decode(assign(conv.weight, codebook), codebook)
        alpha = conv.weight.abs().mean(dim=(1, 2, 3), keepdim=True).half().float()
        conv.weight.copy_(alpha * units)


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Sets every BatchNorm's running statistics, in place, to those of one forward pass of `images`."""
    with _statistics_from_one_batch(model):
        model(images)


def to_subbit(model: Model) -> Model:
    """A copy of `model` whose body runs as `SubbitConv2d`, all else as it was.

    Every body weight must be alpha times +-1 with few distinct units, as `make_subbit_weights` leaves it.
    """
    subbit = copy.deepcopy(model)
    for name, conv in body_convs(subbit):
        subbit.set_submodule(name, SubbitConv2d.from_dense(conv, activation_bits=conv.activation_bits))
    return subbit


def seeded(make: Callable[[], Model], seed: int) -> Model:
    """A network in evaluation mode whose weights are random, the same for a seed, without touching torch's own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                # As training would leave it. With 0, an integer sum that is just the channel's mean, as happens where
                # statistics come from few pixels, is on the very threshold of a sign.
                nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def activation(activation_bits: int) -> nn.Module:
    """What follows a BatchNorm: ReLU, or Hardtanh before binary activations (as in the paper's section A)."""
    return nn.Hardtanh(inplace=True) if activation_bits == 1 else nn.ReLU(inplace=True)


@contextmanager
def _statistics_from_one_batch(model: nn.Module) -> Iterator[None]:
    """Train mode with momentum 1, for BatchNorm only; everything but the statistics is put back afterwards."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm, norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    try:
        yield
    finally:
        for norm, momentum, training in before:
            norm.momentum = momentum
            norm.train(training)
