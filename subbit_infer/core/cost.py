"""Parameters and Bit-OPs of layers and models, counted as the paper counts them.

A multiply-add of a 1-bit weight and a 1-bit activation is one Bit-OP; with a 32-bit activation it is 32, and with both
at 32 bits it is 64. A sub-bit layer computes each codeword's response to an input unit once and then only adds:
``C_in * (taps * 2**tau + add_cost * C_out)`` Bit-OPs a pixel, C_in counted in units, and never more than the dense
layer's. The published figures follow two values of ``add_cost``: 1/2 for ResNet-18 on ImageNet, 1 for Table 6.

Table 6 (ResNet-50 on CIFAR10) is counted as follows. Its parameters then come out to every printed digit:

- all convolutions but the first, those of the shortcuts included, and not the last linear layer;
- the weights alone: no codebook, scale, bias or batch normalization;
- 32, 1, tau/9 (3x3) and tau/8 (1x1) bits per weight; 1 Mbit is 10**6 bits.

The Bit-OPs need the original ResNet-50, which puts the stride of a stage on its first 1x1 convolution and not on the
3x3, and a first convolution of stride 1 without pooling after it. The dense figures then agree to rounding (78.11 for
78.12, which is twice the printed 39.06), the sub-bit ones with ``add_cost=1`` to 3 % (2.5, 1.7 and 1.4 % above for
tau = 5, 4, 3). Charging the response of a 1x1 unit 7 Bit-OPs rather than 8 gives all the sub-bit figures as printed,
but the paper does not say so.

ResNet-18 on ImageNet, as the published training code's README has it, is its 3x3 layers alone, without the shortcuts',
with ``add_cost=0.5``: parameters to every printed digit, Bit-OPs to one in the last (1.676 G for 1.677, 0.884 for
0.883).

Source: "Sub-bit Neural Networks" (Wang et al., ICCV 2021), "Computation sharing"; supplement, Tables 5 and 6 and
section F.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from subbit_infer.core.codebook import MAX_TAU, default_unit

Weights = Literal["full", "binary"] | int
"""Bits of the weights: 32 ("full"), 1 ("binary"), or tau bits per unit."""

_FULL_BITS = 32
_FULL_OPS = 64  # Bit-OPs of a multiply-add of two 32-bit numbers


@dataclass(frozen=True)
class ConvShape:
    """The sizes of a convolution that its cost depends on; a linear layer is a 1x1 convolution of a 1x1 image.

    Attributes:
        in_channels: Input channels, of all groups.
        out_channels: Output channels, of all groups.
        kernel_size: (kh, kw).
        out_height: Rows of the output.
        out_width: Columns of the output.
        groups: Groups of channels.

    Raises:
        ValueError: A size below 1, or channels that are no multiple of ``groups``.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    out_height: int
    out_width: int
    groups: int = 1

    def __post_init__(self) -> None:
        sizes = (self.in_channels, self.out_channels, *self.kernel_size, self.out_height, self.out_width, self.groups)
        if min(sizes) < 1:
            raise ValueError(f"every size of a ConvShape must be at least 1, got {self}")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"in_channels and out_channels must be multiples of groups, got {self}")

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.in_channels // self.groups * self.out_channels * math.prod(self.kernel_size)

    @property
    def pixels(self) -> int:
        """Number of output pixels."""
        return self.out_height * self.out_width

    @property
    def has_unit(self) -> bool:
        """Whether the weights divide into 1x3x3 or 8x1x1 units."""
        if self.kernel_size == (1, 1):
            return self.in_channels // self.groups % default_unit((1, 1))[0] == 0
        return self.kernel_size == (3, 3)


@dataclass(frozen=True)
class LayerCost:
    """The cost of a layer or of several.

    Attributes:
        parameters: Bits of the weights.
        bit_ops: Bit-OPs of one image.
    """

    parameters: int
    bit_ops: float

    def __add__(self, other: "LayerCost") -> "LayerCost":
        return LayerCost(self.parameters + other.parameters, self.bit_ops + other.bit_ops)


def layer_cost(
    shape: ConvShape, *, weights: Weights, activation_bits: Literal[1, 32] = 32, add_cost: float = 0.5
) -> LayerCost:
    """Counts one layer.

    Args:
        shape: The layer's sizes.
        weights: "full" (32 bits), "binary" (1 bit), or tau, 1 to 8, for tau bits per unit.
        activation_bits: 1 or 32; full-precision weights go with 32 only.
        add_cost: Bit-OPs of adding one shared response to one output: 0.5 or 1 in the paper's figures.

    Returns:
        The bits of the weights and the Bit-OPs of one image.

    Raises:
        ValueError: ``weights``, ``activation_bits`` or ``add_cost`` is out of range, or ``weights`` is tau and the
            layer does not divide into units.

    Source: main paper, "Computation sharing"; supplement, Table 5.
    """
    _check_setting(weights, activation_bits, add_cost)
    dense = shape.weights * shape.pixels
    if weights == "full":
        return LayerCost(_FULL_BITS * shape.weights, _FULL_OPS * dense)
    if weights == "binary":
        return LayerCost(shape.weights, activation_bits * dense)
    if not shape.has_unit:
        raise ValueError(f"weights of tau bits need 3x3 kernels, or 1x1 with 8n input channels a group, got {shape}")
    taps = math.prod(default_unit(shape.kernel_size))
    units = shape.weights // taps
    responses = shape.in_channels * math.prod(shape.kernel_size) * 2**weights
    shared = shape.pixels * (responses + add_cost * units)
    return LayerCost(weights * units, activation_bits * min(dense, shared))


def model_cost(
    shapes: Sequence[ConvShape],
    *,
    weights: Weights,
    weights_1x1: Weights | None = None,
    activation_bits: Literal[1, 32] = 32,
    add_cost: float = 0.5,
    first_and_last: bool = False,
) -> LayerCost:
    """Counts a model, of which the first and the last layer are full precision (32/32).

    Args:
        shapes: The layers in order, the first and the last included; see ``conv_shapes``.
        weights: Bits of the weights of the layers between, as in ``layer_cost``. A layer that does not divide into
            units keeps 1-bit weights where this is tau.
        weights_1x1: The same for 1x1 kernels; ``weights`` by default.
        activation_bits: Bits of the activations of the layers between, 1 or 32.
        add_cost: As in ``layer_cost``.
        first_and_last: Whether to count the first and the last layer; the paper's tables do not.

    Returns:
        The bits of the weights and the Bit-OPs of one image.

    Raises:
        ValueError: Fewer than two layers, or a setting out of range.

    Source: supplement, Table 6 and section F.
    """
    if len(shapes) < 2:
        raise ValueError(f"shapes must hold the first and the last layer, got {len(shapes)} layers")
    pointwise = weights if weights_1x1 is None else weights_1x1
    for setting in (weights, pointwise):
        _check_setting(setting, activation_bits, add_cost)
    total = LayerCost(0, 0)
    for shape in shapes[1:-1]:
        setting = pointwise if shape.kernel_size == (1, 1) else weights
        if isinstance(setting, int) and not shape.has_unit:
            setting = "binary"
        total += layer_cost(shape, weights=setting, activation_bits=activation_bits, add_cost=add_cost)
    if first_and_last:
        total += layer_cost(shapes[0], weights="full") + layer_cost(shapes[-1], weights="full")
    return total


def conv_shapes(model: nn.Module, example: Tensor) -> list[ConvShape]:
    """Collects the shapes of a model's convolutions and linear layers by running it once, in evaluation mode.

    A linear layer counts as a 1x1 convolution of a 1x1 image, or of N x 1 where it is applied to N positions of an
    image. A layer that is called several times is listed each time.

    Args:
        model: Any module; the ``nn.Conv2d`` and ``nn.Linear`` in it are counted. It is left as it was.
        example: An input of the model, whose first dimension is the batch.

    Returns:
        One shape a call, in the order of the calls.

    Source: supplement, section F (convolutions and the last linear layer).
    """
    shapes: list[ConvShape] = []

    def record(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        del args
        shapes.append(_shape_of(module, output))

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                stack.callback(_hook(module, record))
        with torch.no_grad():
            model(example)
    return shapes


def _check_setting(weights: Weights, activation_bits: int, add_cost: float) -> None:
    is_tau = isinstance(weights, int) and not isinstance(weights, bool) and 1 <= weights <= MAX_TAU
    if weights not in ("full", "binary") and not is_tau:
        raise ValueError(f'weights must be "full", "binary" or tau, 1 to {MAX_TAU}, got {weights!r}')
    if activation_bits not in (1, _FULL_BITS):
        raise ValueError(f"activation_bits must be 1 or 32, got {activation_bits}")
    if weights == "full" and activation_bits != _FULL_BITS:
        raise ValueError(f'activation_bits must be 32 with weights "full", got {activation_bits}')
    if not 0 <= add_cost < math.inf:
        raise ValueError(f"add_cost must be finite and not negative, got {add_cost}")


def _hook(module: nn.Module, record: Callable[[nn.Module, tuple[Any, ...], Tensor], None]) -> Callable[[], None]:
    return module.register_forward_hook(record).remove


def _shape_of(module: nn.Module, output: Tensor) -> ConvShape:
    if isinstance(module, nn.Conv2d):
        kernel_size = (module.kernel_size[0], module.kernel_size[1])
        height, width = output.shape[-2:]
        return ConvShape(module.in_channels, module.out_channels, kernel_size, height, width, module.groups)
    assert isinstance(module, nn.Linear)
    return ConvShape(module.in_features, module.out_features, (1, 1), math.prod(output.shape[1:-1]), 1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode and gives every module its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
