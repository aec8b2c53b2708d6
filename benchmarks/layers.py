"""The layers that are measured, and random work for one of them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from subbit_infer import PackedWeight
from subbit_infer.core.codebook import decode, default_unit, vanilla


@dataclass(frozen=True)
class Layer:
    """A convolution of one group, padded to keep its size at stride 1."""

    c_in: int
    c_out: int
    side: int
    kernel: int = 3
    stride: int = 1
    batch: int = 1

    @property
    def name(self) -> str:
        """Channels, side of the input, and what is not usual."""
        parts = [f"{self.c_in}>{self.c_out}@{self.side}"]
        parts += ["1x1"] * (self.kernel == 1)
        parts += [f"/{self.stride}"] * (self.stride > 1)
        parts += [f"x{self.batch}"] * (self.batch > 1)
        return " ".join(parts)

    @property
    def unit(self) -> tuple[int, int, int]:
        """The unit's shape: one 3x3 kernel, or eight channels of a 1x1."""
        return default_unit((self.kernel, self.kernel))

    @property
    def padding(self) -> int:
        """Zeros on each side."""
        return self.kernel // 2

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense convolution."""
        out_side = (self.side - 1) // self.stride + 1
        return self.batch * self.c_in * self.c_out * self.kernel**2 * out_side**2


# How often each layer occurs in the body of a network, for images of 224 x 224.
RESNET18 = {
    Layer(64, 64, 56): 4,
    Layer(64, 128, 56, stride=2): 1,
    Layer(128, 128, 28): 3,
    Layer(128, 256, 28, stride=2): 1,
    Layer(256, 256, 14): 3,
    Layer(256, 512, 14, stride=2): 1,
    Layer(512, 512, 7): 3,
}
RESNET34 = dict(zip(RESNET18, (6, 1, 7, 1, 11, 1, 5), strict=True))
RESNET50_1X1 = {
    Layer(64, 64, 56, 1): 1,
    Layer(64, 256, 56, 1): 3,
    Layer(256, 64, 56, 1): 2,
    Layer(256, 128, 56, 1): 1,
    Layer(128, 512, 28, 1): 4,
    Layer(512, 128, 28, 1): 3,
    Layer(512, 256, 28, 1): 1,
    Layer(256, 1024, 14, 1): 6,
    Layer(1024, 256, 14, 1): 5,
    Layer(1024, 512, 14, 1): 1,
    Layer(512, 2048, 7, 1): 3,
    Layer(2048, 512, 7, 1): 2,
}


@dataclass(frozen=True)
class Problem:
    """Random work for a layer: every sum is exact in float32, so every order of addition gives the same bits.

    Inputs are integers in [-8, 8] without 0, whose sign engines take differently; scales are powers of two.
    """

    layer: Layer
    tau: int

    @cached_property
    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.tau)

    @cached_property
    def x(self) -> Tensor:
        """The input."""
        layer = self.layer
        shape = (layer.batch, layer.c_in, layer.side, layer.side)
        magnitudes = torch.randint(1, 9, shape, generator=self._generator)
        return (magnitudes * (torch.randint(0, 2, shape, generator=self._generator) * 2 - 1)).float()

    @cached_property
    def weight(self) -> PackedWeight:
        """The sub-bit weight."""
        layer = self.layer
        codebook = vanilla(self.tau, unit=layer.unit, seed=self.tau)
        shape = (layer.c_out, layer.c_in // layer.unit[0])
        indices = torch.randint(len(codebook), shape, generator=self._generator)
        scale = 2.0 ** -torch.randint(0, 4, (layer.c_out,), generator=self._generator)
        return PackedWeight.from_indices(indices, codebook, scale)

    @cached_property
    def dense(self) -> Tensor:
        """The same weight for those who know no better."""
        return self.weight.decode()

    @cached_property
    def signs(self) -> Tensor:
        """The dense weight without its scale."""
        return decode(self.weight.indices(), self.weight.codebook())

    @cached_property
    def expected_a32(self) -> Tensor:
        """What comes out with float activations."""
        return F.conv2d(self.x, self.dense, None, self.layer.stride, self.layer.padding)

    @cached_property
    def expected_a1(self) -> Tensor:
        """What comes out with binary activations."""
        return F.conv2d(self.x.sign(), self.dense, None, self.layer.stride, self.layer.padding)
