"""Networks to try sub-bit layers on, dense and sub-bit, in plain torch, with seeded random weights.

``resnet18()`` is dense; ``make_subbit_weights(model)`` gives its body weights that a sub-bit layer can hold, and
``to_subbit(model)`` makes the twin that runs on :func:`subbit_infer.conv`, layer for layer. The form to deploy is made
by ``subbit_infer.convert(model, images, fold=True)``, as for any network. The *body* is what the paper stores in fewer
than one bit per weight: every convolution but the first one and the shortcuts'.
"""

import warnings

import torch
from torch import nn

from subbit_infer.models.body import BodyConv2d, body_convs, calibrate, make_subbit_weights, to_subbit
from subbit_infer.models.reactnet import ReActNet, reactnet18
from subbit_infer.models.resnet import ResNet, resnet18, resnet34, resnet50
from subbit_infer.models.resnet8 import ResNet8, resnet8
from subbit_infer.models.resnet20 import ResNet20, resnet20
from subbit_infer.models.vgg import VGGSmall, vgg_small

__all__ = [
    "BodyConv2d",
    "ReActNet",
    "ResNet",
    "ResNet8",
    "ResNet20",
    "VGGSmall",
    "body_convs",
    "calibrate",
    "fuse",
    "make_subbit_weights",
    "reactnet18",
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "to_subbit",
    "vgg_small",
]


def fuse(model: nn.Module) -> nn.Module:
    """Deprecated: forwards to ``subbit_infer.convert(model, images, fold=True)``, which takes any network.

    Args:
        model: a network of this package, dense or as `to_subbit` makes it.

    Returns:
        The folded network.
    """
    import subbit_infer  # it imports this package, and has the one conversion

    warnings.warn("models.fuse is deprecated: call subbit_infer.convert(..., fold=True)", DeprecationWarning, 2)
    side = 32 if isinstance(model, VGGSmall) else 64
    return subbit_infer.convert(model, torch.zeros(2, 3, side, side), fold=True).model
