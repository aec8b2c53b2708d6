"""Networks as they are deployed: everything around a sub-bit convolution goes into its epilogue.

A BatchNorm becomes scale and bias of the convolution before it, activations and the addition of a shortcut follow in
the same pass, and binary activations go from layer to layer packed. The parts here are what the networks' ``fused``
methods put together to a plain ``nn.Sequential``.

Layouts, as measured on one thread of a Zen 4 core for 224 x 224: torch's convolution of the stem takes 2.2 ms
channels_last and 5.4 contiguous, the pooling after it 0.3 and 6.0. The sixteen sub-bit layers of a ResNet-18 take
9.3 ms contiguous and 12.2 channels_last where activations are float, which is worth the 0.14 ms of one conversion. With
packed activations they take 3.6 ms channels_last, the order of the words, and 4.2 beside a contiguous shortcut.
"""

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from subbit_infer.core.activations import PackedActivations
from subbit_infer.nn import SubbitConv2d

Signals = Tensor | tuple[Tensor, Tensor | PackedActivations]
"""What goes between blocks: floats, or floats for the shortcut and what the convolution takes the signs of."""


class Network(nn.Module):
    """A network that knows its fused form."""

    def fused(self) -> nn.Sequential:
        """The fused network; see `fuse`."""
        raise NotImplementedError


def fuse(model: nn.Module) -> nn.Sequential:
    """The same function for inference, faster: a network that `to_subbit` made, with its layers fused.

    Every sub-bit convolution carries its BatchNorm, activation and shortcut, and where the next one takes signs alone
    it gets them packed; dense convolutions carry their BatchNorm. Results differ by rounding, since a folded BatchNorm
    rounds elsewhere. So a binary activation that is within rounding of 0 may have another sign, and what follows jumps;
    one that is exactly 0 stays 0 wherever the folded numbers are exact.

    Args:
        model: A network of this package in evaluation mode whose body is sub-bit; it stays as it is.

    Returns:
        A ``nn.Sequential`` that shares no memory with `model`, in evaluation mode and without gradients.

    Raises:
        TypeError: it is no network of this package, or its body is not sub-bit.
        ValueError: the network is in training mode, whose BatchNorm is another function.
    """
    if not isinstance(model, Network):
        raise TypeError(f"model must be a network of subbit_infer.models, got a {type(model).__name__}")
    if model.training:
        raise ValueError("model must be in evaluation mode, got one in training mode: call eval()")
    # Not inference tensors, even if called so: those do not count changes, and their contents are compared every call.
    with torch.inference_mode(False), torch.no_grad():
        return model.fused().eval().requires_grad_(False)


@torch.no_grad()
def fold(
    conv: nn.Module,
    norm: nn.BatchNorm2d,
    *,
    before: Tensor | None = None,
    slope: Tensor | None = None,
    shift: Tensor | None = None,
    pack_shift: Tensor | None = None,
    activation: str = "none",
    output: str = "float",
) -> SubbitConv2d:
    """A sub-bit convolution with the BatchNorm after it in its scale and bias, computed in float64 and rounded once.

    Args:
        conv: The convolution, a `SubbitConv2d` without epilogue.
        norm: Its BatchNorm, whose running statistics count.
        before: (C_out,) to be added between the BatchNorm and the activation, or None.
        slope: As in :func:`subbit_infer.conv`; so are the others.
        shift: What is added after the activation.
        pack_shift: What is added before the signs of a packed output.
        activation: "none", "relu", "hardtanh" or "prelu".
        output: "float", "packed" or "both".

    Raises:
        TypeError: it is another kind of convolution.
    """
    if not isinstance(conv, SubbitConv2d):
        raise TypeError(f"the body must be sub-bit, as to_subbit makes it, got a {type(conv).__name__}")
    weight = conv.packed_weight()
    gain, offset = _affine(norm)
    bias = offset if weight.bias is None else offset + gain * weight.bias
    folded = replace(
        weight,
        packed_indices=weight.packed_indices.clone(),
        packed_codebook=weight.packed_codebook.clone(),
        scale=(gain if weight.scale is None else gain * weight.scale).float(),
        bias=(bias if before is None else bias + before).float(),
    )
    return SubbitConv2d.from_packed(
        folded,
        stride=_short(conv.stride),
        padding=conv.padding if isinstance(conv.padding, str) else _short(conv.padding),
        dilation=_short(conv.dilation),
        groups=conv.groups,
        activation_bits=conv.activation_bits,
        sign_zero=conv.sign_zero,
        slope=_copy(slope),
        shift=_copy(shift),
        pack_shift=_copy(pack_shift),
        activation=activation,
        output=output,
    )


def fold_dense(layers: Iterable[nn.Module], *, channels_last: bool) -> list[nn.Module]:
    """Copies of layers, each BatchNorm folded into the dense convolution that it follows.

    Args:
        layers: What is applied one after the other.
        channels_last: Whether the convolutions compute, and so answer, in channels_last. Strided 1x1 ones then take
            their pixels out first: 2.6 ms instead of 7.5 for ResNet-50's last shortcut, next to nothing for the others.
    """
    found: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d) and found and isinstance(found[-1], nn.Conv2d):
            found[-1] = fuse_conv_bn_eval(found[-1], layer)
        else:
            found.append(copy.deepcopy(layer))
    if not channels_last:
        return found
    for place in reversed(range(len(found))):
        conv = found[place]
        if not isinstance(conv, nn.Conv2d):
            continue
        conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch lacks this one
        if conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.stride != (1, 1):
            found.insert(place, Every(conv.stride[0], conv.stride[1]))
            conv.stride = (1, 1)
    return found


def activation_name(module: nn.Module) -> str:
    """What :func:`subbit_infer.conv` calls an activation without parameters."""
    return {nn.ReLU: "relu", nn.Hardtanh: "hardtanh"}[type(module)]


def is_increasing(norm: nn.BatchNorm2d) -> bool:
    """Whether a BatchNorm never turns the order of two values around, so that a maximum may be taken after it."""
    return not bool((_affine(norm)[0] < 0).any())


class FusedBlock(nn.Module):
    """Sub-bit convolutions in a row with a shortcut around them, which is added in the last one's epilogue.

    Args:
        convs: The convolutions, the last one of which gives what the next block takes: "float" or "both".
        shortcut: What the floats go through on their way around.
    """

    def __init__(self, convs: list[SubbitConv2d], shortcut: nn.Module) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.shortcut = shortcut

    def forward(self, signals: Signals) -> Signals:
        """From `Signals` to the next ones."""
        x, y = signals if isinstance(signals, tuple) else (signals, signals)
        residual = self.shortcut(x)
        *first, last = self.convs
        for conv in first:
            y = conv(y)
        return last(y, residual)  # type: ignore[no-any-return]


class Contiguous(nn.Module):
    """To contiguous memory, which sub-bit convolutions of floats like best."""

    def forward(self, x: Tensor) -> Tensor:
        """The same values."""
        return x.contiguous()


class Every(nn.Module):
    """Every so many rows and columns, as a strided 1x1 convolution sees them."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H / rows), ceil(W / columns)), in the same memory."""
        return x[:, :, :: self.rows, :: self.columns]

    def extra_repr(self) -> str:
        """The distances."""
        return f"{self.rows}, {self.columns}"


class MaxPool2x2(nn.Module):
    """The maximum over pixels two by two; of signs also while they are packed.

    Rows first, then columns: 0.05 ms for 128 x 32 x 32 contiguous floats, which take ``max_pool2d`` 0.7 ms.
    """

    def forward(self, x: Tensor | PackedActivations) -> Tensor | PackedActivations:
        """(N, C, H, W) of even H and W to (N, C, H / 2, W / 2)."""
        if isinstance(x, Tensor):
            x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
            return torch.maximum(x[..., ::2], x[..., 1::2])
        # Of -1, 0 and +1 the maximum is +1 where any is, and -1 where none is and none is 0.
        plus = _two_by_two(torch.bitwise_or, x.plus)
        nonzero = None if x.nonzero is None else plus | _two_by_two(torch.bitwise_and, x.nonzero)
        return PackedActivations(plus, nonzero, x.channels, trusted=True)


def _two_by_two(combine: Any, words: Tensor) -> Tensor:
    """Combines words (N, H, W, n) of pixels two by two."""
    words = combine(words[:, ::2], words[:, 1::2])
    combined: Tensor = combine(words[:, :, ::2], words[:, :, 1::2])
    return combined


def _short(pair: int | tuple[int, int]) -> int | tuple[int, int]:
    """One number for two that are the same: every call checks them, and one is checked 3 us faster."""
    return pair[0] if isinstance(pair, tuple) and pair[0] == pair[1] else pair


def _copy(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.detach().clone()


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a BatchNorm multiplies with and then adds, in float64."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("BatchNorm must have running statistics to be folded")
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    gain = gain if norm.weight is None else gain * norm.weight
    offset = -norm.running_mean * gain
    return gain, offset if norm.bias is None else offset + norm.bias
