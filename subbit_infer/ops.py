"""The operations: ``conv`` and ``linear``, and the torch.library operators under them.

``torch.ops.subbit_infer.conv2d`` runs the compiled kernels on the CPU for 1x3x3 and 8x1x1 units, and the reference
for every other unit and device.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Sequence
from numbers import Integral
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.nn.grad import conv2d_input
from torch.utils.weak import WeakTensorKeyDictionary

from subbit_infer import _dispatch, _native, reference
from subbit_infer import codebook as codebooks
from subbit_infer.weight import (
    PackedWeight,
    check_channel_vector,
    check_indices,
    pack_codebook,
    pack_indices,
    unpack_bits,
    unpack_codebook,
)

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_MOST = 2**31  # strides, paddings and dilations are below

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


# ---- checks ---------------------------------------------------------------------------------------------------


def _pair(name: str, value: object, least: int) -> tuple[int, int]:
    """An int or a pair of ints as a pair, each at least ``least``."""
    if type(value) is int and least <= value < _MOST:
        return value, value
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if not all(isinstance(v, Integral | torch.SymInt) and not isinstance(v, bool) for v in pair):
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")
    if len(pair) not in (1, 2):
        raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    if max(pair) >= _MOST:
        raise ValueError(f"{name} must be below 2^31, got {value!r}")
    first, last = (v if isinstance(v, torch.SymInt) else int(v) for v in (pair[0], pair[-1]))
    return cast("tuple[int, int]", (first, last))


def _one_of(name: str, value: object, allowed: tuple[int, ...]) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(str, allowed))}, got {value!r}")


def _check_input(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.dtype not in _FLOATS:
        raise TypeError(f"x must be float32, float16 or bfloat16, got {x.dtype}")


def _same_padding(
    x: Tensor, kernel: tuple[int, int], dilation: tuple[int, int], binary: bool, sign_zero: int
) -> tuple[Tensor, tuple[int, int]]:
    """Padding "same": an odd total is one zero longer below and to the right, as in ``F.conv2d``."""
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(t % 2 for t in total):
        # Binarized first, so that the added zeros have no sign (conv clears sign_zero).
        x = reference.binarize(x, sign_zero) if binary else x
        x = F.pad(x, (0, total[1] % 2, 0, total[0] % 2))
    return x, (total[0] // 2, total[1] // 2)


def _padding(
    x: Tensor,
    padding: object,
    stride: tuple[int, int],
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    binary: bool,
    sign_zero: int,
) -> tuple[Tensor, tuple[int, int]]:
    if padding == "valid":
        return x, (0, 0)
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(f"padding must be numbers where stride is not 1: 'same' got stride {stride}")
        return _same_padding(x, kernel, dilation, binary, sign_zero)
    if isinstance(padding, str):
        raise ValueError(f"padding must be 'same', 'valid', an int or a pair of ints, got {padding!r}")
    return x, _pair("padding", padding, 0)


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


# ---- operators ------------------------------------------------------------------------------------------------


def _memory_format(x: Tensor) -> torch.memory_format:
    """The layout of the result: channels_last where x's strides are in that order, as in ``F.conv2d``."""
    if x.is_contiguous():
        return torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return suggest_memory_format(x)


def _check_operands(x: Tensor, packed_indices: Tensor, *others: Tensor | None, activation_bits: int) -> None:
    """What the operator asks of its tensors beyond their sizes; ``conv`` sees to all of it but the devices."""
    if x.dtype not in _FLOATS or x.dim() != 4:
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


def _decode(packed_indices: Tensor, packed_codebook: Tensor, units: int, codewords: int, unit: Sequence[int]) -> Tensor:
    """The dense weight without scale, (C_out, units * g, kh, kw) float32."""
    indices = unpack_bits(packed_indices, units, codebooks.tau_of(codewords))
    check_indices(indices, codewords)
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
    indices = unpack_bits(packed_indices, units, codebooks.tau_of(codewords))
    check_indices(indices, codewords)
    y = reference.conv2d(
        x.to(torch.float32),
        indices,
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


def _conv2d_cpu(
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
_library.impl("conv2d", _conv2d_cpu, "CPU")
_library.impl("decode", _decode, "CompositeExplicitAutograd")
_library.impl("pack_indices", pack_indices, "CompositeExplicitAutograd")
_library.impl("pack_codebook", pack_codebook, "CompositeExplicitAutograd")


# ---- gradients ------------------------------------------------------------------------------------------------


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


# ---- the functions that people call ---------------------------------------------------------------------------

_packed = WeakTensorKeyDictionary()
_packed_lock = threading.Lock()
os.register_at_fork(
    before=_packed_lock.acquire, after_in_parent=_packed_lock.release, after_in_child=_packed_lock.release
)


def _packed_once(indices: Tensor, codebook: Tensor) -> PackedWeight:
    """The packed form of plain tensors, kept as long as they live and do not change."""
    if not isinstance(indices, Tensor) or indices.is_inference() or codebook.is_inference():
        return PackedWeight.from_indices(indices, codebook)
    state = (
        *(indices._version, indices.data_ptr(), indices.shape, indices.stride()),
        *(codebook._version, codebook.data_ptr(), codebook.shape, codebook.stride()),
    )
    with _packed_lock:
        entry = _packed.get(indices)
        if entry is not None and entry[0]() is codebook and entry[1] == state:
            weight: PackedWeight = entry[2]
            return weight
    weight = PackedWeight.from_indices(indices, codebook)
    with _packed_lock:
        _packed[indices] = (weakref.ref(codebook), state, weight)
    return weight


def _packed_in_graph(indices: Tensor, codebook: Tensor) -> PackedWeight:
    """The same inside torch.compile and torch.export: values are checked when the graph runs."""
    codebook = codebooks.as_units(codebook)
    codewords, g, kh, kw = codebook.shape
    packed = torch.ops.subbit_infer.pack_indices(indices, codewords)
    bits = torch.ops.subbit_infer.pack_codebook(codebook)
    return PackedWeight(packed, bits, indices.shape[1], codewords, (g, kh, kw))


def _as_packed(indices: Tensor | PackedWeight, codebook: Tensor | None) -> PackedWeight:
    if isinstance(indices, PackedWeight):
        if codebook is not None:
            raise TypeError("codebook must be None where indices is a PackedWeight: it holds its own")
        return indices
    if codebook is None:
        raise TypeError("codebook must be given where indices is not a PackedWeight")
    if not isinstance(codebook, Tensor):
        raise TypeError(f"codebook must be a tensor, got {type(codebook).__name__}")
    if torch.compiler.is_compiling():
        return _packed_in_graph(indices, codebook)
    return _packed_once(indices, codebook)


def conv(
    x: Tensor,
    indices: Tensor | PackedWeight,
    codebook: Tensor | None = None,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    activation_bits: int = 32,
    sign_zero: int = 0,
) -> Tensor:
    """Convolves x with a sub-bit weight; equals ``F.conv2d(x, decoded weight, ...)``.

    Args:
        x: (N, C_in, H, W) or (C_in, H, W), float32, or float16 or bfloat16, which are computed in float32. Any
            strides.
        indices: (C_out, C_in / groups / g) integers in [0, K), or a :class:`PackedWeight`. Plain tensors are
            checked and packed at the first call, and again when torch has counted a change in place (changes through
            ``.data``, or through memory shared with NumPy, it does not count: pass a new tensor).
        codebook: (K, g, kh, kw) of +-1, K from 1 to 256; (K, kh, kw) is short for g = 1, and (K, g) for
            (K, g, 1, 1). None with a PackedWeight. Kernels are compiled for (K, 1, 3, 3) and (K, 8, 1, 1).
        bias: (C_out,) added last; None for the PackedWeight's.
        stride: int or pair, as in ``F.conv2d``.
        padding: int, pair, ``"same"`` or ``"valid"``. Padding contributes nothing in either activation mode.
        dilation: int or pair.
        groups: groups of channels.
        scale: (C_out,) multiplies the sums before the bias is added; None for the PackedWeight's.
        activation_bits: 32, or 1 to take the sign of x first: the result is that of ``F.conv2d(x.sign(), W)``.
        sign_zero: what the sign of an exact 0 of x is, 0 or 1.

    Returns:
        (N, C_out, H_out, W_out), or without N, in x's dtype; channels_last where x is.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value or size breaks a rule; the message names the argument, the rule and the value.
    """
    _check_input(x)
    if x.dim() not in (3, 4):
        raise ValueError(f"x must be (N, C_in, H, W) or (C_in, H, W), got shape {tuple(x.shape)}")
    if torch.autograd.forward_ad._current_level >= 0 and torch.autograd.forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError("conv has no forward-mode derivative; use reverse mode, or reference.conv2d")
    weight = _as_packed(indices, codebook)
    _one_of("activation_bits", activation_bits, (1, 32))
    _one_of("sign_zero", sign_zero, (0, 1))
    groups = (
        _pair("groups", groups, -_MOST)[0] if isinstance(groups, Integral) and not isinstance(groups, bool) else groups
    )
    if not isinstance(groups, int) or isinstance(groups, bool):
        raise TypeError(f"groups must be an int, got {groups!r}")
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    stride = _pair("stride", stride, 1)
    dilation = _pair("dilation", dilation, 1)
    unpadded = batched
    batched, padding = _padding(batched, padding, stride, weight.unit[1:], dilation, activation_bits == 1, sign_zero)
    sign_zero = sign_zero if batched is unpadded else 0  # padded here: binarized already
    out_channels = weight.packed_indices.shape[0]
    scale = weight.scale if scale is None else scale
    bias = weight.bias if bias is None else bias
    check_channel_vector("scale", scale, out_channels)
    check_channel_vector("bias", bias, out_channels)
    tensors = (batched, weight.packed_indices, weight.packed_codebook, scale, bias)
    direct = _dispatch.nothing_watches() and _dispatch.are_plain(*tensors)
    y: Tensor = (_conv2d_cpu if direct else torch.ops.subbit_infer.conv2d)(
        batched, weight.packed_indices, weight.packed_codebook, scale, bias, stride, padding, dilation, groups,
        weight.units, weight.codewords, weight.unit, activation_bits, sign_zero,
    )  # fmt: skip
    return y if x.dim() == 4 else y.squeeze(0)


def linear(
    x: Tensor,
    indices: Tensor | PackedWeight,
    codebook: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    activation_bits: int = 32,
    sign_zero: int = 0,
) -> Tensor:
    """Multiplies the last dimension of x with a sub-bit weight; equals ``F.linear(x, decoded weight, bias)``.

    It is the 1x1 case of :func:`conv`, whose other arguments it shares.

    Args:
        x: (..., C_in) floats.
        indices: (C_out, C_in / g) integers, or a :class:`PackedWeight`.
        codebook: (K, g) of +-1, kernels being compiled for g = 8; or None with a PackedWeight.
        bias: (C_out,) or None.
        scale: (C_out,) or None.
        activation_bits: 32, or 1 to take the sign of x first.
        sign_zero: what the sign of an exact 0 is, 0 or 1.

    Returns:
        (..., C_out) in x's dtype.

    Raises:
        TypeError, ValueError: as :func:`conv`.
    """
    _check_input(x)
    if x.dim() < 1:
        raise ValueError("x must be (..., C_in), got a scalar")
    weight = _as_packed(indices, codebook)
    if weight.unit[1:] != (1, 1):
        raise ValueError(f"codebook must have units of 1x1 taps for linear, got units {weight.unit}")
    # The vectors are the pixels of an image one row high, read in place.
    pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 2, 1) if x.numel() else x.new_empty(0, x.shape[-1], 1, 1)
    y = conv(pixels, weight, None, bias, scale=scale, activation_bits=activation_bits, sign_zero=sign_zero)
    return y.permute(0, 3, 2, 1).reshape(*x.shape[:-1], weight.out_channels)
