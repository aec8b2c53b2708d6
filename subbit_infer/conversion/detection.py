"""Detects sub-bit weights and packs them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from subbit_infer.core import codebook as codebooks
from subbit_infer.core.bits import numbers_of_bits
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
        number, and the mean magnitude else; it is negative in channels whose opposite makes an index shorter.

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
    numbers, taps = _unit_numbers(signs)
    count = len(numbers.unique())
    flips = channel_flips(numbers, taps) if count > 2 else torch.ones(len(numbers))  # 2 units take one bit anyway
    fewer = len(_flipped(numbers, flips, taps).unique())
    if min(count, fewer) > codebooks.MAX_CODEWORDS:
        raise NotSubbitError(f"more than {codebooks.MAX_CODEWORDS} distinct units")
    magnitudes = scale[:, None, None, None]
    if codebooks.tau_of(fewer) < codebooks.tau_of(count):
        flips = flips.to(weight.device)
        packed = PackedWeight.from_dense(signs * flips[:, None, None, None] * magnitudes, bias=bias)
        return replace(packed, scale=scale * flips)
    return PackedWeight.from_dense(signs * magnitudes, bias=bias)


def _unit_numbers(signs: Tensor) -> tuple[Tensor, int]:
    """A number per unit, (C_out, U) on the CPU, of which bit n is the sign of tap n; and the taps of a unit."""
    unit = codebooks.default_unit((signs.shape[2], signs.shape[3]))
    bits = (codebooks.units_of(signs, unit) > 0).flatten(2)
    return numbers_of_bits(bits).cpu(), bits.shape[2]


def _flipped(numbers: Tensor, flips: Tensor, taps: int) -> Tensor:
    return torch.where(flips[:, None] < 0, 2**taps - 1 - numbers, numbers)


def channel_flips(numbers: Tensor, taps: int) -> Tensor:
    """Sign flips that reduce distinct units.

    A BatchNorm of negative gain that was folded into a weight flips its channels, so that up to twice as many distinct
    units occur. A negative scale flips them back.

    Args:
        numbers: (C_out, U), a number per unit, whose bits are the signs of its taps.
        taps: of a unit.

    Returns:
        (C_out,) of +-1: -1 for channels whose opposite brings fewer new units.
    """
    # In NumPy, whose operations no mode of torch watches: conversion runs within one, and here are several per channel.
    channels = len(numbers)
    occurs = np.zeros((channels, 2**taps), dtype=np.bool_)
    occurs[np.arange(channels)[:, None], numbers.numpy()] = True
    seen = np.zeros(2**taps, dtype=np.bool_)
    flips = np.ones(channels, dtype=np.float32)
    for channel, own in enumerate(occurs):
        opposite = own[::-1]
        if np.count_nonzero(opposite & ~seen) < np.count_nonzero(own & ~seen):
            flips[channel], own = -1, opposite
        seen |= own
    return torch.from_numpy(flips)


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
