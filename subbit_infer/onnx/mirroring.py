"""Weights that became sub-bit with another sign in some channels: a BatchNorm of negative gain was folded into them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from subbit_infer import codebook as codebooks
from subbit_infer.recognize import NotSubbitError, recognize
from subbit_infer.weight import PackedWeight


def recognize_folded(weight: Tensor, bias: Tensor | None) -> PackedWeight:
    """As :func:`subbit_infer.recognize.recognize`, but alpha may be negative where that takes fewer codewords.

    ONNX exporters fold a BatchNorm into the convolution before it. A negative gain turns all units of a channel into
    their opposites, so that up to twice as many distinct ones occur; a negative scale turns them back.

    Raises:
        NotSubbitError: it is not sub-bit; why is the message.
    """
    try:
        plain, reason = recognize(weight, bias), None
    except NotSubbitError as error:
        plain, reason = None, error
    if reason is not None and "distinct units" not in str(reason):
        raise reason
    signs = _channel_signs(weight)
    if bool((signs > 0).all()):
        if plain is None:
            assert reason is not None
            raise reason
        return plain
    mirrored = recognize(weight * signs.reshape(-1, *[1] * (weight.dim() - 1)), bias)
    if plain is not None and plain.codewords <= mirrored.codewords:
        return plain
    return replace(mirrored, scale=signs if mirrored.scale is None else mirrored.scale * signs)


def _channel_signs(weight: Tensor) -> Tensor:
    """(C_out,) of +-1: each channel's sign that brings fewer units that channels before it lack; +1 where equal."""
    weight = weight[:, :, None, None] if weight.dim() == 2 else weight
    unit = codebooks.UNIT_1X1 if tuple(weight.shape[2:]) == (1, 1) else codebooks.UNIT_3X3
    bits = (codebooks.units_of(weight, unit) > 0).flatten(2).to(torch.int64)
    taps = bits.shape[2]
    numbers = (bits << torch.arange(taps)).sum(2).numpy()
    seen = np.zeros(2**taps, dtype=bool)
    signs = torch.ones(len(numbers))
    for channel, own in enumerate(numbers):
        own = np.unique(own)
        opposite = 2**taps - 1 - own
        if (~seen[opposite]).sum() < (~seen[own]).sum():
            signs[channel], own = -1, opposite
        seen[own] = True
    return signs
