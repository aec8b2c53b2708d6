"""A ResNet-18 for binary activations in the style of Bi-Real net and ReActNet (Liu et al., ECCV 2018 and 2020).

Every 3x3 convolution has a shortcut of its own, so that only the convolutions see binary activations and everything
between them is float. Thresholds and activations are learnt: a shift per channel before the sign, and shift,
PReLU, shift after it.
"""

import torch
from torch import Tensor, nn

from subbit_infer.models.body import BodyConv2d, seeded
from subbit_infer.models.resnet import WIDTHS
from subbit_infer.models.stem import STEM_CHANNELS, Stem, first_layers


class Shift(nn.Module):
    """Adds a learnt number to each channel; drawn small, to stand for what training would find."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(0.1 * torch.randn(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, channels, H, W) to the same shape."""
        return x + self.bias


class BinaryBlock(nn.Module):
    """One 3x3 convolution of binary activations with its shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.move0 = Shift(in_channels)
        self.binary_conv = BodyConv2d(in_channels, out_channels, 3, stride, activation_bits=1)  # takes the signs itself
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.move1 = Shift(out_channels)
        self.prelu = nn.PReLU(out_channels)
        self.move2 = Shift(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            pooling = nn.AvgPool2d(stride, ceil_mode=True)  # an odd side rounds up in the convolution, too
            self.downsample = nn.Sequential(pooling, conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        y = self.bn1(self.binary_conv(self.move0(x))) + self.downsample(x)
        return self.move2(self.prelu(self.move1(y)))  # type: ignore[no-any-return]


class ReActNet(nn.Module):
    """A ResNet of binary blocks. The first convolution, the shortcuts and the linear layer stay in full precision.

    Args:
        depths: Blocks, of one convolution each, in each of the four stages.
        num_classes: Outputs of the last linear layer.
        in_channels: Of the images: 3, or 1 for grey ones.
        stem: What comes before the first block; see :func:`subbit_infer.models.stem.first_layers`.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: Stem = "imagenet",
    ) -> None:
        super().__init__()
        self.conv1, self.maxpool = first_layers(in_channels, stem)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        channels = STEM_CHANNELS
        for stage, (depth, width) in enumerate(zip(depths, WIDTHS, strict=True), start=1):
            blocks = nn.Sequential()
            for number in range(depth):
                blocks.append(BinaryBlock(channels, width, 2 if stage > 1 and number == 0 else 1))
                channels = width
            self.add_module(f"layer{stage}", blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.maxpool(self.bn1(self.conv1(x)))
        for stage in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def reactnet18(num_classes: int = 1000, seed: int = 0, in_channels: int = 3, stem: Stem = "imagenet") -> ReActNet:
    """A ReActNet-style ResNet-18 with seeded random weights."""
    return seeded(lambda: ReActNet((4, 4, 4, 4), num_classes, in_channels, stem), seed)
