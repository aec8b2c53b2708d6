"""Networks to try sub-bit layers on, dense and sub-bit, in plain torch, with seeded random weights.

``resnet18()`` is dense; ``make_subbit_weights(model)`` gives its body weights that a sub-bit layer can hold, and
``to_subbit(model)`` makes the twin that runs on :func:`subbit_infer.conv`, layer for layer. ``fuse(subbit)`` makes of
that the form to deploy, in which nothing but convolutions is left. The *body* is what the paper stores in less
than one bit per weight: every convolution but the first one and the shortcuts'.
"""

from subbit_infer.models.body import BodyConv2d, body_convs, calibrate, make_subbit_weights, to_subbit
from subbit_infer.models.fusion import fuse
from subbit_infer.models.reactnet import ReActNet, reactnet18
from subbit_infer.models.resnet import ResNet, resnet18, resnet34, resnet50
from subbit_infer.models.vgg import VGGSmall, vgg_small

__all__ = [
    "BodyConv2d",
    "ReActNet",
    "ResNet",
    "VGGSmall",
    "body_convs",
    "calibrate",
    "fuse",
    "make_subbit_weights",
    "reactnet18",
    "resnet18",
    "resnet34",
    "resnet50",
    "to_subbit",
    "vgg_small",
]
