"""What comes before the first block of a ResNet: for photographs, or for images of some 32 x 32."""

from typing import Literal, get_args

from torch import nn

Stem = Literal["imagenet", "cifar"]
STEMS: tuple[Stem, ...] = get_args(Stem)
"""What a ResNet begins with: "imagenet" quarters the sides of an image, "cifar" keeps them."""

STEM_CHANNELS = 64


def first_layers(in_channels: int, stem: Stem) -> tuple[nn.Conv2d, nn.Module]:
    """The first convolution, which stays in full precision, and the pooling after its normalization.

    Args:
        in_channels: Of the images.
        stem: "imagenet": 7x7 with stride 2, then max-pooling with stride 2 (He et al., CVPR 2016). "cifar": 3x3 with
            stride 1 and no pooling, usual for a ResNet-18 on CIFAR-10, of whose images the other one leaves 8 x 8.

    Raises:
        ValueError: There is no such stem.
    """
    if stem == "imagenet":
        return nn.Conv2d(in_channels, STEM_CHANNELS, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)
    if stem == "cifar":
        return nn.Conv2d(in_channels, STEM_CHANNELS, 3, 1, 1, bias=False), nn.Identity()
    raise ValueError(f"stem must be one of {', '.join(map(repr, STEMS))}, got {stem!r}")
