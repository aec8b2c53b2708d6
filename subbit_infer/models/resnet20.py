"""ResNet-20, the small network for 32 x 32 images of the paper's CIFAR-10 tables and of its Figure 11.

Structure as in the original (He et al., CVPR 2016, section 4.2): three stages of three blocks, 16, 32 and 64 channels,
and shortcuts without parameters, which take every second pixel and add channels of zeros.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from subbit_infer.models.body import BodyConv2d, activation, seeded

WIDTHS = (16, 32, 64)
DEPTH = 3  # blocks per stage


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut without parameters around them."""

    def __init__(self, in_channels: int, width: int, stride: int, activation_bits: int) -> None:
        super().__init__()
        self.stride, self.added = stride, width - in_channels
        self.conv1 = BodyConv2d(in_channels, width, 3, stride, activation_bits)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = activation(activation_bits)
        self.conv2 = BodyConv2d(width, width, 3, 1, activation_bits)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = activation(activation_bits)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, width, H / stride, W / stride)."""
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.added:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return self.act2(y + shortcut)  # type: ignore[no-any-return]


class ResNet20(nn.Module):
    """A ResNet-20. The body is its eighteen 3x3 convolutions; the first one and the linear layer stay.

    Args:
        activation_bits: what the body's convolutions see: 32 for floats, 1 for binary activations.
        num_classes: outputs of the linear layer.
        in_channels: of the images: 3, or 1 for grey ones.
    """

    def __init__(self, activation_bits: int = 32, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.activation_bits = activation_bits
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.act = activation(activation_bits)
        channels = WIDTHS[0]
        for stage, width in enumerate(WIDTHS, start=1):
            blocks = nn.Sequential()
            for number in range(DEPTH):
                blocks.append(Block(channels, width, 2 if stage > 1 and number == 0 else 1, activation_bits))
                channels = width
            self.add_module(f"layer{stage}", blocks)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.act(self.bn1(self.conv1(x)))
        for stage in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def resnet20(activation_bits: int = 32, num_classes: int = 10, seed: int = 0, in_channels: int = 3) -> ResNet20:
    """A ResNet-20 with seeded random weights."""
    return seeded(lambda: ResNet20(activation_bits, num_classes, in_channels), seed)
