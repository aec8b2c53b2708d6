"""ResNet-18, ResNet-34 and ResNet-50: the networks of the paper's ImageNet tables and of its Table 6.

Structure and parameter names are the usual ones (``conv1``, ``bn1``, ``layer1`` to ``layer4``, ``fc``), so that weights
trained elsewhere fit. The body is every convolution of the residual blocks, 3x3 and 1x1. The first convolution, the 1x1
shortcuts and the last linear layer stay in full precision.
"""

from typing import ClassVar

from torch import Tensor, nn

from subbit_infer.models.body import BodyConv2d, activation, seeded
from subbit_infer.models.stem import STEM_CHANNELS, Stem, first_layers

WIDTHS = (64, 128, 256, 512)  # channels of the 3x3 layers in each of the four stages


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them."""

    expansion: ClassVar[int] = 1  # channels of the output over the stage's width

    def __init__(self, in_channels: int, width: int, stride: int, activation_bits: int) -> None:
        super().__init__()
        self.conv1 = BodyConv2d(in_channels, width, 3, stride, activation_bits)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = BodyConv2d(width, width, 3, 1, activation_bits)
        self.bn2 = nn.BatchNorm2d(width)
        self.act = activation(activation_bits)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, width, H / stride, W / stride)."""
        y = self.act(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.act(y.add_(self.downsample(x)))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, with a shortcut around them; the 3x3 one has the stride."""

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, width: int, stride: int, activation_bits: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = BodyConv2d(in_channels, width, 1, 1, activation_bits)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = BodyConv2d(width, width, 3, stride, activation_bits)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = BodyConv2d(width, out_channels, 1, 1, activation_bits)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.act = activation(activation_bits)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, 4 * width, H / stride, W / stride)."""
        y = self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.act(y.add_(self.downsample(x)))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A ResNet for images of some 224 x 224, or with the stem "cifar" of some 32 x 32.

    Args:
        block: The kind of residual block.
        depths: Blocks in each of the four stages.
        activation_bits: What the body's convolutions see: 32 for floats (after ReLU), 1 for binary activations (of
            Hardtanh).
        num_classes: Outputs of the last linear layer.
        in_channels: Of the images: 3, or 1 for grey ones.
        stem: What comes before the first block; see :func:`subbit_infer.models.stem.first_layers`.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        activation_bits: int = 32,
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: Stem = "imagenet",
    ) -> None:
        super().__init__()
        self.activation_bits = activation_bits
        self.conv1, pooling = first_layers(in_channels, stem)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.act = activation(activation_bits)
        self.maxpool = pooling
        channels = STEM_CHANNELS
        for stage, (depth, width) in enumerate(zip(depths, WIDTHS, strict=True), start=1):
            blocks = nn.Sequential()
            for number in range(depth):
                stride = 2 if stage > 1 and number == 0 else 1
                blocks.append(block(channels, width, stride, activation_bits))
                channels = width * block.expansion
            self.add_module(f"layer{stage}", blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for stage in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def resnet18(
    activation_bits: int = 32, num_classes: int = 1000, seed: int = 0, in_channels: int = 3, stem: Stem = "imagenet"
) -> ResNet:
    """A ResNet-18 with seeded random weights."""
    return seeded(lambda: ResNet(BasicBlock, (2, 2, 2, 2), activation_bits, num_classes, in_channels, stem), seed)


def resnet34(
    activation_bits: int = 32, num_classes: int = 1000, seed: int = 0, in_channels: int = 3, stem: Stem = "imagenet"
) -> ResNet:
    """A ResNet-34 with seeded random weights."""
    return seeded(lambda: ResNet(BasicBlock, (3, 4, 6, 3), activation_bits, num_classes, in_channels, stem), seed)


def resnet50(
    activation_bits: int = 32, num_classes: int = 1000, seed: int = 0, in_channels: int = 3, stem: Stem = "imagenet"
) -> ResNet:
    """A ResNet-50 with seeded random weights."""
    return seeded(lambda: ResNet(Bottleneck, (3, 4, 6, 3), activation_bits, num_classes, in_channels, stem), seed)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))
