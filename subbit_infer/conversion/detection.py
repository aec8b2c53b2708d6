"""Whether a dense weight is sub-bit, and as what it is packed then."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from subbit_infer.core import codebook as codebooks
from subbit_infer.core.weight import PackedWeight

TOLERANCE = 1e-5
"""How far, relative to alpha, a magnitude may be from it: training code computes sign(w) as (sign(w) - w) + w."""


class NotSubbitError(ValueError):
    """A weight that no sub-bit layer can hold; the message says why, in a few words."""


def recognize(weight: Tensor, bias: Tensor | None = None, *, tolerance: float = TOLERANCE) -> PackedWeight:
    """Packs a dense weight if it is sub-bit: in every output channel +-alpha, of at most 256 distinct units in all.

    Args:
        weight: (C_out, C_in / groups, kh, kw), or (C_out, C_in) of a linear layer.
        bias: (C_out,) floats, or None.
        tolerance: how far a magnitude may be from its channel's alpha, relative to it.

    Returns:
        The packed weight of the units 1x3x3 or 8x1x1. Its scale, alpha, is the channel's magnitude where that is one
        number, and the mean magnitude else; it is negative in channels whose opposite needs fewer bits per index.

    Raises:
        NotSubbitError: it is not; why is the message.

    Source: paper, section 3 (a weight is alpha times a codeword of the layer's set).
    """
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise NotSubbitError(f"weights are {str(weight.dtype).removeprefix('torch.')}")
    weight = weight.detach().to(torch.float32)
    weight = weight[:, :, None, None] if weight.dim() == 2 else weight
    if weight.dim() != 4 or weight.numel() == 0:
        raise NotSubbitError(f"the weight has shape {tuple(weight.shape)}")
    check_unit(weight)
    scale = alpha_of(weight, tolerance)
    signs = weight.sign()
    packed = _pack(signs, scale, bias)
    if packed is None or packed.tau > 1:
        turned = _turned(signs)
        if bool((turned < 0).any()):
            other = _pack(signs * turned[:, None, None, None], scale, bias)
            if other is not None and (packed is None or other.tau < packed.tau):
                packed = replace(other, scale=scale * turned)
    if packed is None:
        raise NotSubbitError(f"more than {codebooks.MAX_CODEWORDS} distinct units")
    return packed


def _pack(signs: Tensor, scale: Tensor, bias: Tensor | None) -> PackedWeight | None:
    """The packed weight, or None where there are too many distinct units."""
    try:
        return PackedWeight.from_dense(signs * scale[:, None, None, None], bias=bias)
    except ValueError as error:
        if "distinct units" not in str(error):
            raise
        return None


def _turned(signs: Tensor) -> Tensor:
    """(C_out,) of +-1: -1 for channels whose opposite brings fewer new units.

    A BatchNorm of negative gain that was folded into a weight turns its channels around, so that up to twice as many
    distinct units occur. A negative scale turns them back.
    """
    unit = codebooks.default_unit((signs.shape[2], signs.shape[3]))
    bits = (codebooks.units_of(signs, unit) > 0).flatten(2).to(torch.int64)
    taps = bits.shape[2]
    numbers = (bits << torch.arange(taps, device=bits.device)).sum(2).cpu()
    seen = torch.zeros(2**taps, dtype=torch.bool)
    turned = torch.ones(len(numbers))
    for channel, units in enumerate(numbers):
        own = units.unique()
        opposite = 2**taps - 1 - own
        if int((~seen[opposite]).sum()) < int((~seen[own]).sum()):
            turned[channel], own = -1, opposite
        seen[own] = True
    return turned.to(signs.device)


def check_unit(weight: Tensor) -> None:
    """Checks that a weight (C_out, C_in / groups, kh, kw) divides into units that kernels are compiled for.

    Raises:
        NotSubbitError: it does not; why is the message.
    """
    channels, *kernel = weight.shape[1:]
    if kernel == [1, 1] and channels % codebooks.UNIT_1X1[0] != 0:
        raise NotSubbitError(f"{channels} input channels do not divide into units of 8")
    if kernel not in ([1, 1], [3, 3]):
        raise NotSubbitError(f"no kernels for {kernel[0]}x{kernel[1]} units")


def alpha_of(weight: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """The alpha of each output channel of a weight that is +-alpha.

    Args:
        weight: float32 (C_out, C_in / groups, kh, kw).
        tolerance: how far a magnitude may be from its channel's alpha, relative to it.

    Returns:
        float32 (C_out,): the channel's magnitude where that is one number, else the mean magnitude.

    Raises:
        NotSubbitError: it is not; why is the message.
    """
    magnitudes = weight.abs().flatten(1)
    least, most = magnitudes.aminmax(dim=1)
    if not bool(magnitudes.isfinite().all()):
        raise NotSubbitError("weights are not finite")
    if bool((least == 0).any()):
        raise NotSubbitError(f"weights of 0 (channel {int((least == 0).nonzero()[0])})")
    spread = (most - least) / most
    if bool((spread > 2 * tolerance).any()):
        channel = int(spread.argmax())
        low, high = float(least[channel]), float(most[channel])
        raise NotSubbitError(f"magnitudes from {low:.3g} to {high:.3g} in one channel ({channel})")
    # A mean of equal numbers may round to another number.
    mean = magnitudes.double().mean(dim=1).float()
    return torch.where(least == most, least, mean)
