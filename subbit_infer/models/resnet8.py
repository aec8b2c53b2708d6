"""ResNet-8, a small network for small images, of which this package brings trained weights.

A first convolution of stride 2, three residual blocks of 24, 48 and 96 channels, the last two of stride 2, and a linear
layer: some 160,000 weights, two minutes of training on one core for five epochs of Fashion-MNIST.
"""

from __future__ import annotations

from torch import Tensor, nn

from subbit_infer.models.body import activation, seeded
from subbit_infer.models.resnet import BasicBlock

WIDTHS = (24, 48, 96)


class ResNet8(nn.Module):
    """A ResNet-8. The body is its six 3x3 convolutions; the first one, the shortcuts and the linear layer stay.

    Args:
        activation_bits: what the body's convolutions see: 32 for floats, 1 for binary activations.
        num_classes: outputs of the linear layer.
        in_channels: of the images: 3, or 1 for grey ones.
    """

    def __init__(self, activation_bits: int = 32, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.activation_bits = activation_bits
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.act = activation(activation_bits)
        first, second, third = WIDTHS
        self.layer1 = BasicBlock(first, first, 1, activation_bits)
        self.layer2 = BasicBlock(first, second, 2, activation_bits)
        self.layer3 = BasicBlock(second, third, 2, activation_bits)
        self.fc = nn.Linear(third, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.act(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def resnet8(activation_bits: int = 32, num_classes: int = 10, seed: int = 0, in_channels: int = 3) -> ResNet8:
    """A ResNet-8 with seeded random weights."""
    return seeded(lambda: ResNet8(activation_bits, num_classes, in_channels), seed)
