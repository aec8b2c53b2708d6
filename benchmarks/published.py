"""The layers that the paper's tables of parameters and Bit-OPs count, network by network.

What a table counts, and what an addition costs in it, is found by what reproduces its figures: those printed in the
supplement (Table 6, ResNet-50) and with the published training code (its README, ResNet-18 on ImageNet). VGG-small's
are taken to be counted like the other network of 3x3 layers.
"""

from dataclasses import dataclass

import torch
from torch import nn

from subbit_infer import models
from subbit_infer.core.cost import ConvShape, conv_shapes


@dataclass(frozen=True)
class Network:
    """A network as its table counts it.

    Attributes:
        name: as the paper has it.
        shapes: of the first layer, those between, and the last.
        add_cost: of adding a shared response, in Bit-OPs.
    """

    name: str
    shapes: list[ConvShape]
    add_cost: float


def resnet18(side: int = 32, classes: int = 10) -> Network:
    """ResNet-18 for images of CIFAR-10, or of ImageNet with side 224: its 3x3 layers without the shortcuts."""
    model = models.resnet18(num_classes=classes, stem="cifar" if side == 32 else "imagenet")
    return Network("ResNet-18", _without_shortcuts(_shapes(model, side)), 0.5)


def resnet20() -> Network:
    """ResNet-20, whose shortcuts have no weights."""
    return Network("ResNet-20", _shapes(models.resnet20(), 32), 0.5)


def vgg_small() -> Network:
    """VGG-small, without global pooling before its linear layer."""
    return Network("VGG-small", _shapes(models.vgg_small(), 32), 0.5)


def resnet50() -> Network:
    """ResNet-50 with its shortcuts, and with the stride of a stage on its first 1x1 convolution; ours is on the 3x3."""
    shapes = [ConvShape(3, 64, (3, 3), 32, 32)]
    channels = 64
    for stage, blocks in enumerate([3, 4, 6, 3]):
        width, side = 64 << stage, 32 >> stage
        for block in range(blocks):
            shapes.append(ConvShape(channels, width, (1, 1), side, side))
            shapes.append(ConvShape(width, width, (3, 3), side, side))
            shapes.append(ConvShape(width, 4 * width, (1, 1), side, side))
            if block == 0:
                shapes.append(ConvShape(channels, 4 * width, (1, 1), side, side))
            channels = 4 * width
    return Network("ResNet-50", [*shapes, ConvShape(channels, 10, (1, 1), 1, 1)], 1)


def _shapes(model: nn.Module, side: int) -> list[ConvShape]:
    return conv_shapes(model, torch.zeros(1, 3, side, side))


def _without_shortcuts(shapes: list[ConvShape]) -> list[ConvShape]:
    return [*(shape for shape in shapes[:-1] if shape.kernel_size != (1, 1)), shapes[-1]]
