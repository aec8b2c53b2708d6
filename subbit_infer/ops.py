"""The operations that people call: ``conv`` and ``linear``."""

from __future__ import annotations

import os
import threading
import weakref
from numbers import Integral
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from subbit_infer import _dispatch, operators, reference
from subbit_infer import codebook as codebooks
from subbit_infer.weight import PackedWeight, check_channel_vector

_MOST = 2**31  # strides, paddings and dilations are below


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
    if x.dtype not in operators.FLOATS:
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
    y: Tensor = (operators.conv2d_cpu if direct else torch.ops.subbit_infer.conv2d)(
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
