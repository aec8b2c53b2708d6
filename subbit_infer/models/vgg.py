"""VGG-small, the network for 32 x 32 images that papers on binary networks compare on (CIFAR-10)."""

import copy
from collections import OrderedDict
from itertools import pairwise

from torch import Tensor, nn

from subbit_infer.models.body import BodyConv2d, activation, seeded
from subbit_infer.models.fusion import Contiguous, MaxPool2x2, Network, activation_name, fold, fold_dense, is_increasing
from subbit_infer.nn import SubbitConv2d

WIDTHS = (128, 128, 256, 256, 512, 512)  # channels after each 3x3 convolution; every second one halves the image


class VGGSmall(Network):
    """Six 3x3 convolutions in pairs, each pair followed by pooling, and a linear layer.

    The body is the last five convolutions; the first one and the linear layer stay in full precision.

    Args:
        activation_bits: What the body's convolutions see: 32 for floats (after ReLU), 1 for binary activations (of
            Hardtanh).
        num_classes: Outputs of the linear layer.
    """

    def __init__(self, activation_bits: int = 32, num_classes: int = 10) -> None:
        super().__init__()
        self.activation_bits = activation_bits
        layers: list[nn.Module] = [nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(WIDTHS[0]), activation(activation_bits)]
        for number, width in enumerate(WIDTHS[1:], start=1):
            layers.append(BodyConv2d(WIDTHS[number - 1], width, activation_bits=activation_bits))
            if number % 2 == 1:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(width), activation(activation_bits)]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(WIDTHS[-1] * 4 * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, 3, 32, 32) to logits (N, num_classes)."""
        return self.fc(self.features(x).flatten(1))  # type: ignore[no-any-return]

    def fused(self) -> nn.Sequential:
        """The fused network; see `fuse`."""
        layers = list(self.features)
        starts = [place for place, layer in enumerate(layers) if isinstance(layer, BodyConv2d | SubbitConv2d)]
        stem = fold_dense(layers[: starts[0]], channels_last=True)
        if self.activation_bits == 32:
            stem.append(Contiguous())
        body: list[nn.Module] = []
        for start, end in pairwise([*starts, len(layers)]):
            conv, *pool, norm, act = layers[start:end]
            assert isinstance(norm, nn.BatchNorm2d)
            packs = self.activation_bits == 1 and end < len(layers)
            if pool and not is_increasing(norm):  # then the maximum after the BatchNorm would be another one
                body += copy.deepcopy([conv, MaxPool2x2(), norm, act])
                continue
            body.append(fold(conv, norm, activation=activation_name(act), output="packed" if packs else "float"))
            body += [MaxPool2x2() for _ in pool]
        return nn.Sequential(
            OrderedDict(
                stem=nn.Sequential(*stem),
                body=nn.Sequential(*body),
                head=nn.Sequential(nn.Flatten(), copy.deepcopy(self.fc)),
            )
        )


def vgg_small(activation_bits: int = 32, num_classes: int = 10, seed: int = 0) -> VGGSmall:
    """A VGG-small with seeded random weights."""
    return seeded(lambda: VGGSmall(activation_bits, num_classes), seed)
