"""The oracle: sub-bit convolution in plain torch, twice. It never touches the compiled kernels.

:func:`conv2d` decodes the weight and convolves it densely; it also serves what no kernel is compiled for.
:func:`conv2d_shared` is the paper's computation sharing (section 4.4, Figure 6) written down as it reads. On
integer-valued inputs the two agree exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from subbit_infer.core import codebook as codebook_module
from subbit_infer.core.epilogue import Epilogue


def binarize(x: Tensor, sign_zero: int = 0) -> Tensor:
    """The sign of x: -1, 0 or +1. With ``sign_zero=1`` zeros count as +1. NaN has sign 0, as in ``torch.sign``."""
    return torch.where(x == 0, torch.ones_like(x), x.sign()) if sign_zero else x.sign()


def padded(
    x: Tensor, taps: Sequence[int], padding: tuple[int, int], dilation: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """X and the padding left to the convolution: none, with x padded here, where outputs may lie in it as a whole.

    There oneDNN 3.14 and earlier read far outside a channels_last input and crash (uxlfoundation/oneDNN#5942,
    pytorch/pytorch#195394).
    """
    size = x.shape[2:]
    if any(padding[i] > dilation[i] * (taps[i] - 1) or dilation[i] > size[i] for i in (0, 1)):
        return F.pad(x, (padding[1], padding[1], padding[0], padding[0])), (0, 0)
    return x, padding


def dense_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """``F.conv2d``, of an input that is :func:`padded` first where it has to be."""
    x, padding = padded(x, weight.shape[2:], padding, dilation)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def conv2d(
    x: Tensor,
    indices: Tensor,
    codebook: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    slope: Tensor | None = None,
    shift: Tensor | None = None,
    activation_bits: int = 32,
    sign_zero: int = 0,
) -> Tensor:
    """Sub-bit convolution by decoding the weight.

    Args:
        x: (N, C_in, H, W) float32 or float64.
        indices: (C_out, C_in / groups / g) int64.
        codebook: (K, g, kh, kw) of +-1.
        bias: (C_out,) added to the scaled sums.
        stride: as in ``F.conv2d``; so are padding, dilation and groups.
        padding: zeros, which contribute nothing in either activation mode.
        dilation: distance of the taps.
        groups: groups of channels.
        scale: (C_out,) multiplies the sums before the bias is added.
        residual: (N, C_out, H_out, W_out) added after the bias.
        activation: "none", "relu", "hardtanh" or "prelu"; see :class:`~subbit_infer.epilogue.Epilogue`.
        slope: (C_out,) of "prelu".
        shift: (C_out,) added after the activation.
        activation_bits: 32, or 1 to take the sign of x first.
        sign_zero: what the sign of 0 is, 0 or 1.

    Returns:
        (N, C_out, H_out, W_out) in x's dtype.
    """
    x = binarize(x, sign_zero) if activation_bits == 1 else x
    weight = codebook_module.decode(indices, codebook).to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):  # the sums are float32 whatever surrounds the call
        sums = dense_conv2d(x, weight, None, stride, padding, dilation, groups)
        return Epilogue(scale, bias, residual, activation, slope, shift).apply(sums)


def conv2d_shared(
    x: Tensor,
    indices: Tensor,
    codebook: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    slope: Tensor | None = None,
    shift: Tensor | None = None,
    activation_bits: int = 32,
    sign_zero: int = 0,
) -> Tensor:
    """Sub-bit convolution by sharing: every codeword's response once, then one addition per unit.

    Arguments and result are those of :func:`conv2d`.
    """
    x = binarize(x, sign_zero) if activation_bits == 1 else x
    codewords, g = codebook.shape[:2]
    out_channels, units = indices.shape
    responses = dense_conv2d(  # (N, all units * K, H_out, W_out): a unit is a group of its own
        x, codebook.to(x.dtype).repeat(groups * units, 1, 1, 1), None, stride, padding, dilation, x.shape[1] // g
    )
    responses = responses.unflatten(1, (groups * units, codewords))
    per_group = out_channels // groups
    sums = torch.zeros(x.shape[0], out_channels, *responses.shape[3:], dtype=x.dtype, device=x.device)
    for o in range(out_channels):
        first = o // per_group * units
        for u in range(units):
            sums[:, o] += responses[:, first + u, indices[o, u]]
    return Epilogue(scale, bias, residual, activation, slope, shift).apply(sums)
