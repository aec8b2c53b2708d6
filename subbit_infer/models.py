"""ResNet-18 and ResNet-34, dense and sub-bit: the networks of the paper's ImageNet tables, in plain torch.

Structure and parameter names are the usual ones (``conv1``, ``bn1``, ``layer1`` to ``layer4``, ``fc``), so that weights
trained elsewhere fit. The *body* is every 3x3 convolution of the residual blocks: the layers that the paper stores in
less than one bit a weight. The first convolution, the 1x1 shortcuts and the last linear layer stay in full precision.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from subbit_infer.codebook import assign, decode, vanilla
from subbit_infer.nn import SubbitConv2d

WIDTHS = (64, 64, 128, 256, 512)  # channels after the stem and after each of the four stages


class BinaryActivationConv2d(nn.Conv2d):
    """A convolution that sees only the signs of its input; zeros, and so the padding, contribute nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolves ``x.sign()``."""
        return super().forward(x.sign())


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, activation_bits: int) -> None:
        super().__init__()
        conv = _conv_type(activation_bits)
        self.conv1 = conv(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act = _activation(activation_bits)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        y = self.act(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.act(y.add_(self.downsample(x)))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A ResNet of basic blocks.

    Args:
        blocks: Residual blocks in each of the four stages.
        activation_bits: What the body's convolutions see: 32 for float activations (ReLU), 1 for their signs (Hardtanh,
            as in the paper's section A).
        num_classes: Outputs of the last linear layer.
    """

    def __init__(self, blocks: tuple[int, int, int, int], activation_bits: int = 32, num_classes: int = 1000) -> None:
        super().__init__()
        if activation_bits not in (1, 32):
            raise ValueError(f"activation_bits must be 1 or 32, got {activation_bits}")
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.act = _activation(activation_bits)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for number, (depth, (wide_in, wide_out)) in enumerate(zip(blocks, pairwise(WIDTHS), strict=True), start=1):
            first = BasicBlock(wide_in, wide_out, 1 if number == 1 else 2, activation_bits)
            rest = [BasicBlock(wide_out, wide_out, 1, activation_bits) for _ in range(depth - 1)]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, 3, H, W) to logits (N, num_classes)."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for stage in range(1, len(WIDTHS)):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def resnet18(activation_bits: int = 32, num_classes: int = 1000, seed: int = 0) -> ResNet:
    """A ResNet-18 with seeded random weights."""
    return _resnet((2, 2, 2, 2), activation_bits, num_classes, seed)


def resnet34(activation_bits: int = 32, num_classes: int = 1000, seed: int = 0) -> ResNet:
    """A ResNet-34 with seeded random weights."""
    return _resnet((3, 4, 6, 3), activation_bits, num_classes, seed)


def body_convs(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """The 3x3 convolutions by name, in order: sixteen in a ResNet-18, neither the first one nor the 1x1 shortcuts."""
    convs = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return [(name, conv) for name, conv in convs if conv.kernel_size == (3, 3)]


@torch.no_grad()
def make_subbit_weights(model: nn.Module, tau: int = 5, seed: int = 0) -> None:
    """Replaces the body's weights, in place, by ones that a sub-bit layer can hold.

    A weight becomes alpha times its nearest codewords of a random codebook (Vanilla-SNN), another one for each layer;
    alpha, one an output channel, is the mean magnitude of what it replaces, at float16's precision. That makes sums of
    +-alpha exact in float32: alpha has 11 significant bits and a layer adds up at most 4608 < 2^13 of them, 24 bits. So
    a network of binary activations gives the same bits whatever the order of addition; otherwise an activation within
    rounding of zero would flip its sign, and the next layers would jump.

    Args:
        model: The network; its body is what `body_convs` finds.
        tau: Bits an index: 2^tau distinct 3x3 kernels a layer, tau / 9 bit a weight.
        seed: The first layer's seed; the next layer takes the next number.
    """
    for number, (_, conv) in enumerate(body_convs(model)):
        codebook = vanilla(tau, unit=(1, 3, 3), seed=seed + number)
        units = decode(assign(conv.weight, codebook), codebook)
        alpha = conv.weight.abs().mean(dim=(1, 2, 3), keepdim=True).half().float()
        conv.weight.copy_(alpha * units)


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Sets every BatchNorm's running statistics, in place, to those of one forward pass of `images`."""
    with _statistics_from_one_batch(model):
        model(images)


def to_subbit(model: nn.Module) -> nn.Module:
    """A copy of `model` whose body runs as `SubbitConv2d`.

    Every body weight must be alpha times +-1 with few distinct kernels, as `make_subbit_weights` leaves it.
    """
    subbit = copy.deepcopy(model)
    for name, conv in body_convs(subbit):
        bits = 1 if isinstance(conv, BinaryActivationConv2d) else 32
        parent, _, attribute = name.rpartition(".")
        setattr(subbit.get_submodule(parent), attribute, SubbitConv2d.from_dense(conv, activation_bits=bits))
    return subbit


def _resnet(blocks: tuple[int, int, int, int], activation_bits: int, num_classes: int, seed: int) -> ResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNet(blocks, activation_bits, num_classes)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model.eval()


def _conv_type(activation_bits: int) -> type[nn.Conv2d]:
    return BinaryActivationConv2d if activation_bits == 1 else nn.Conv2d


def _activation(activation_bits: int) -> nn.Module:
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
