"""A network by its name, made for the images that it is to be trained on."""

from __future__ import annotations

from torch import nn

from subbit_infer.models.reactnet import reactnet18
from subbit_infer.models.resnet import resnet18, resnet34, resnet50
from subbit_infer.models.resnet8 import resnet8
from subbit_infer.models.resnet20 import resnet20
from subbit_infer.models.stem import Stem
from subbit_infer.models.vgg import vgg_small

NAMES = ("resnet8", "resnet20", "resnet18", "resnet34", "resnet50", "vgg-small", "reactnet18")
"""What :func:`network_of` makes."""

_SMALL = 64  # the longer side, in pixels: the stem for photographs would leave at most 16 x 16 of it


def network_of(
    name: str, activation_bits: int, classes: int, channels: int, size: tuple[int, int], seed: int = 0
) -> nn.Module:
    """A network for images of a size, in training mode.

    ResNet-18, -34, -50 and ReActNet get the stem "cifar" where neither side is above 64 pixels, else "imagenet".
    VGG-small's linear layer follows the size.

    Args:
        name: One of :data:`NAMES`.
        activation_bits: 32, or 1 for binary activations, the only ones of "reactnet18".
        classes: Outputs of the last linear layer.
        channels: Of the images: 3, or 1 for grey ones.
        size: (H, W) of the images.
        seed: Of the random weights.

    Raises:
        ValueError: There is no such network, or it is not for these activations or images.
    """
    stem: Stem = "cifar" if max(size) <= _SMALL else "imagenet"
    model: nn.Module
    match name:
        case "resnet8":
            model = resnet8(activation_bits, classes, seed, channels)
        case "resnet20":
            model = resnet20(activation_bits, classes, seed, channels)
        case "resnet18":
            model = resnet18(activation_bits, classes, seed, channels, stem)
        case "resnet34":
            model = resnet34(activation_bits, classes, seed, channels, stem)
        case "resnet50":
            model = resnet50(activation_bits, classes, seed, channels, stem)
        case "vgg-small":
            model = vgg_small(activation_bits, classes, seed, channels, size)
        case "reactnet18":
            if activation_bits != 1:
                raise ValueError(f"activation_bits of reactnet18 must be 1, got {activation_bits}")
            model = reactnet18(classes, seed, channels, stem)
        case _:
            raise ValueError(f"network must be one of {', '.join(NAMES)}, got {name!r}")
    return model.train()
