"""VGG-small, the network for 32 x 32 images that papers on binary networks compare on (CIFAR-10)."""

import math

from torch import Tensor, nn

from subbit_infer.models.body import BodyConv2d, activation, seeded

WIDTHS = (128, 128, 256, 256, 512, 512)  # channels after each 3x3 convolution; every second one halves the image
_HALVINGS = len(WIDTHS) // 2


class VGGSmall(nn.Module):
    """Six 3x3 convolutions in pairs, each pair followed by pooling, and a linear layer.

    The body is the last five convolutions; the first one and the linear layer stay in full precision.

    Args:
        activation_bits: What the body's convolutions see: 32 for floats (after ReLU), 1 for binary activations (of
            Hardtanh).
        num_classes: Outputs of the linear layer.
        in_channels: Of the images: 3, or 1 for grey ones.
        size: (H, W) of the images, which the linear layer's size follows: there is no global pooling before it.

    Raises:
        ValueError: The images are so small that nothing is left of them.
    """

    def __init__(
        self,
        activation_bits: int = 32,
        num_classes: int = 10,
        in_channels: int = 3,
        size: tuple[int, int] = (32, 32),
    ) -> None:
        super().__init__()
        if min(size) < 2**_HALVINGS:
            raise ValueError(f"size must be at least {2**_HALVINGS} x {2**_HALVINGS}, got {size[0]} x {size[1]}")
        self.activation_bits = activation_bits
        layers: list[nn.Module] = [nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(WIDTHS[0]), activation(activation_bits)]
        for number, width in enumerate(WIDTHS[1:], start=1):
            layers.append(BodyConv2d(WIDTHS[number - 1], width, activation_bits=activation_bits))
            if number % 2 == 1:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(width), activation(activation_bits)]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(WIDTHS[-1] * math.prod(side // 2**_HALVINGS for side in size), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, in_channels, H, W), of the given size, to logits (N, num_classes)."""
        return self.fc(self.features(x).flatten(1))  # type: ignore[no-any-return]


def vgg_small(
    activation_bits: int = 32,
    num_classes: int = 10,
    seed: int = 0,
    in_channels: int = 3,
    size: tuple[int, int] = (32, 32),
) -> VGGSmall:
    """A VGG-small with seeded random weights."""
    return seeded(lambda: VGGSmall(activation_bits, num_classes, in_channels, size), seed)
