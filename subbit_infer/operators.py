"""The torch.library operators: ``torch.ops.subbit_infer.conv2d`` and those that pack and decode.

``conv2d`` runs the compiled kernels on the CPU for 1x3x3 and 8x1x1 units, and the reference for every other unit and
device. The operators check what they are given; ``ops`` is what people call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.nn.grad import conv2d_input

from subbit_infer import _native, reference
from subbit_infer import codebook as codebooks
from subbit_infer.weight import (
    check_channel_vector,
    check_indices,
    pack_codebook,
    pack_indices,
    unpack_bits,
    unpack_codebook,
)

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_library = torch.library.Library("subbit_infer", "DEF")
_library.define(
    "conv2d(Tensor x, Tensor packed_indices, Tensor packed_codebook, Tensor? scale, Tensor? bias, int[2] stride, "
    "int[2] padding, int[2] dilation, int groups, int units, int codewords, int[3] unit, int activation_bits, "
    "int sign_zero) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "decode(Tensor packed_indices, Tensor packed_codebook, int units, int codewords, int[3] unit) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define("pack_indices(Tensor indices, int codewords) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.define("pack_codebook(Tensor codebook) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def _out_size(size: int, pad: int, dilation: int, kernel: int, stride: int) -> int:
    return (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1


def _out_sizes(
    x: Tensor,
    unit: tuple[int, int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Sequence[int]:
    _, _, height, width = x.shape
    return [
        _out_size(height, padding[0], dilation[0], unit[1], stride[0]),
        _out_size(width, padding[1], dilation[1], unit[2], stride[1]),
    ]


def _checked_sizes(
    x: Tensor,
    out_channels: int,
    units: int,
    unit: tuple[int, int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> tuple[int, int, int, int]:
    """The sizes of the result, once what must hold between the sizes has been seen to hold."""
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        raise ValueError(
            f"stride and dilation must be at least 1 and padding at least 0, got {stride}, {dilation}, {padding}"
        )
    if groups < 1 or out_channels % groups != 0:
        raise ValueError(f"groups must be at least 1 and divide C_out = {out_channels}, got {groups}")
    expected = units * unit[0] * groups
    if x.shape[1] != expected:
        raise ValueError(
            f"x must have C_in = {expected} channels ({units} units of {unit[0]} in {groups} groups), got {x.shape[1]}"
        )
    height, width = _out_sizes(x, unit, stride, padding, dilation)
    if height < 1 or width < 1:
        raise ValueError(
            f"x must be at least as large as the kernel: height and width {tuple(x.shape[2:])} with padding "
            f"{padding} do not hold a kernel {unit[1:]} with dilation {dilation}"
        )
    sizes = (x.shape[0], out_channels, height, width)
    # No address space holds 2^45 floats: refused before anything is allocated. (Sizes may be symbols of a graph.)
    if all(type(size) is int for size in sizes) and math.prod(sizes) > 2**45:
        raise ValueError(f"the output must have at most 2^45 elements, it would have sizes {sizes}")
    return sizes


def _memory_format(x: Tensor) -> torch.memory_format:
    """The layout of the result: channels_last where x's strides are in that order, as in ``F.conv2d``."""
    if x.is_contiguous():
        return torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return suggest_memory_format(x)


def _check_operands(x: Tensor, packed_indices: Tensor, *others: Tensor | None, activation_bits: int) -> None:
    """What the operator asks of its tensors beyond their sizes; ``conv`` sees to all of it but the devices."""
    if x.dtype not in FLOATS or x.dim() != 4:
        raise TypeError(f"x must be float32, float16 or bfloat16 of 4 dimensions, got {x.dtype} of {x.dim()}")
    if packed_indices.dtype != torch.uint8 or packed_indices.dim() != 2:
        raise TypeError(
            f"packed_indices must be uint8 of 2 dimensions, got {packed_indices.dtype} of {packed_indices.dim()}"
        )
    if activation_bits not in (1, 32):
        raise ValueError(f"activation_bits must be 1 or 32, got {activation_bits}")
    devices = {t.device for t in (x, packed_indices, *others) if t is not None}
    if len(devices) > 1:
        raise ValueError(f"x, weight, scale and bias must be on one device, got {sorted(map(str, devices))}")


def _indices(packed_indices: Tensor, units: int, codewords: int) -> Tensor:
    """The indices (C_out, units), checked."""
    indices = unpack_bits(packed_indices, units, codebooks.tau_of(codewords))
    check_indices(indices, codewords)
    return indices


def _decode(packed_indices: Tensor, packed_codebook: Tensor, units: int, codewords: int, unit: Sequence[int]) -> Tensor:
    """The dense weight without scale, (C_out, units * g, kh, kw) float32."""
    indices = _indices(packed_indices, units, codewords)
    return codebooks.decode(indices, unpack_codebook(packed_codebook, codewords, (unit[0], unit[1], unit[2])))


def _conv2d_reference(
    x: Tensor,
    packed_indices: Tensor,
    packed_codebook: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    units: int,
    codewords: int,
    unit: Sequence[int],
    activation_bits: int,
    sign_zero: int,
) -> Tensor:
    """Any unit on any device: decode and convolve in float32."""
    shape, strides = (unit[0], unit[1], unit[2]), (stride[0], stride[1])
    pads, dilations = (padding[0], padding[1]), (dilation[0], dilation[1])
    _check_operands(x, packed_indices, packed_codebook, scale, bias, activation_bits=activation_bits)
    sizes = _checked_sizes(x, packed_indices.shape[0], units, shape, strides, pads, dilations, groups)
    y = reference.conv2d(
        x.to(torch.float32),
        _indices(packed_indices, units, codewords),
        unpack_codebook(packed_codebook, codewords, shape),
        bias,
        strides,
        pads,
        dilations,
        groups,
        scale=scale,
        activation_bits=activation_bits,
        sign_zero=sign_zero,
    )
    out = torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=_memory_format(x))
    return out.copy_(y)


def _float_vector(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.to(torch.float32).contiguous()


def conv2d_cpu(
    x: Tensor,
    packed_indices: Tensor,
    packed_codebook: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    units: int,
    codewords: int,
    unit: Sequence[int],
    activation_bits: int,
    sign_zero: int,
) -> Tensor:
    """The compiled kernels where there are any for the unit, else the reference."""
    shape = (unit[0], unit[1], unit[2])
    if shape not in _native.UNITS:
        return _conv2d_reference(
            x, packed_indices, packed_codebook, scale, bias, stride, padding, dilation, groups, units, codewords,
            unit, activation_bits, sign_zero,
        )  # fmt: skip
    strides, pads, dilations = (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1])
    _check_operands(x, packed_indices, packed_codebook, scale, bias, activation_bits=activation_bits)
    if x.numel() > 0 and x.untyped_storage().nbytes() == 0:
        raise ValueError("x must have its memory: its storage was resized to 0")
    out_channels = packed_indices.shape[0]
    sizes = _checked_sizes(x, out_channels, units, shape, strides, pads, dilations, groups)
    check_channel_vector("scale", scale, out_channels)
    check_channel_vector("bias", bias, out_channels)
    weight = _native.prepare(packed_indices, packed_codebook, units, codewords, shape)
    x_float = x if x.dtype == torch.float32 else x.to(torch.float32)
    y = torch.empty(sizes, dtype=torch.float32, memory_format=_memory_format(x))
    _native.conv2d(
        weight, x_float, y, _float_vector(scale), _float_vector(bias), strides, pads, dilations, groups,
        activation_bits, sign_zero,
    )  # fmt: skip
    return y if x.dtype == torch.float32 else y.to(x.dtype)


@torch.library.register_fake("subbit_infer::conv2d", lib=_library)
def _conv2d_fake(
    x: Tensor,
    packed_indices: Tensor,
    packed_codebook: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    units: int,
    codewords: int,
    unit: Sequence[int],
    activation_bits: int,
    sign_zero: int,
) -> Tensor:
    shape, strides = (unit[0], unit[1], unit[2]), (stride[0], stride[1])
    pads, dilations = (padding[0], padding[1]), (dilation[0], dilation[1])
    _check_operands(x, packed_indices, packed_codebook, scale, bias, activation_bits=activation_bits)
    sizes = _checked_sizes(x, packed_indices.shape[0], units, shape, strides, pads, dilations, groups)
    return torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=_memory_format(x))


@torch.library.register_fake("subbit_infer::decode", lib=_library)
def _decode_fake(
    packed_indices: Tensor, packed_codebook: Tensor, units: int, codewords: int, unit: Sequence[int]
) -> Tensor:
    g, kh, kw = unit
    return packed_indices.new_empty((packed_indices.shape[0], units * g, kh, kw), dtype=torch.float32)


@torch.library.register_fake("subbit_infer::pack_indices", lib=_library)
def _pack_indices_fake(indices: Tensor, codewords: int) -> Tensor:
    out_channels, units = indices.shape
    return indices.new_empty((out_channels, (units * codebooks.tau_of(codewords) + 7) // 8), dtype=torch.uint8)


@torch.library.register_fake("subbit_infer::pack_codebook", lib=_library)
def _pack_codebook_fake(codebook: Tensor) -> Tensor:
    return codebook.new_empty(((codebook.numel() + 7) // 8,), dtype=torch.uint8)


_library.impl("conv2d", _conv2d_reference, "CompositeExplicitAutograd")
_library.impl("conv2d", conv2d_cpu, "CPU")
_library.impl("decode", _decode, "CompositeExplicitAutograd")
_library.impl("pack_indices", pack_indices, "CompositeExplicitAutograd")
_library.impl("pack_codebook", pack_codebook, "CompositeExplicitAutograd")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed_indices, packed_codebook, scale, bias, *rest = inputs
    ctx.save_for_backward(x, packed_indices, packed_codebook, scale)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.rest = rest


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, scale and bias, as if the weight were decoded; a binarized x gets that of sign: zero."""
    x, packed_indices, packed_codebook, scale = ctx.saved_tensors
    stride, padding, dilation, groups, units, codewords, unit, activation_bits, _ = ctx.rest
    grad = grad.to(torch.float32)
    grad_x = grad_scale = grad_bias = None
    if ctx.needs_input_grad[0] and activation_bits == 1:
        grad_x = torch.zeros_like(x)
    elif ctx.needs_input_grad[0]:
        weight = torch.ops.subbit_infer.decode(packed_indices, packed_codebook, units, codewords, unit)
        scaled = grad if scale is None else grad * scale.to(torch.float32)[:, None, None]
        grad_x = conv2d_input(x.shape, weight, scaled, stride, padding, dilation, groups).to(x.dtype)
    if scale is not None and ctx.needs_input_grad[3]:
        sums = torch.ops.subbit_infer.conv2d(
            x.detach().to(torch.float32), packed_indices, packed_codebook, None, None, *ctx.rest
        )
        grad_scale = (grad * sums).sum((0, 2, 3)).to(scale.dtype)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[4]:
        grad_bias = grad.sum((0, 2, 3)).to(ctx.bias_dtype)
    return (grad_x, None, None, grad_scale, grad_bias) + (None,) * len(ctx.rest)


torch.library.register_autograd("subbit_infer::conv2d", _backward, setup_context=_setup_context, lib=_library)
