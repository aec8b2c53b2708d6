"""Checks of what people pass to ``conv``, ``linear`` and ``pack``, with their names in the messages."""

from __future__ import annotations

from numbers import Integral
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from subbit_infer.core import reference
from subbit_infer.core.activations import PackedActivations, all_channels
from subbit_infer.core.conv_args import FLOATS
from subbit_infer.core.weight import PackedWeight

SIZE_LIMIT = 2**31
"""Strides, paddings and dilations are below it."""


def checked_pair(name: str, value: object, least: int) -> tuple[int, int]:
    """An int or a pair of ints as a pair, each at least ``least``."""
    if type(value) is int and least <= value < SIZE_LIMIT:
        return value, value
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if not all(isinstance(v, Integral | torch.SymInt) and not isinstance(v, bool) for v in pair):
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")
    if len(pair) not in (1, 2):
        raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    if max(pair) >= SIZE_LIMIT:
        raise ValueError(f"{name} must be below 2^31, got {value!r}")
    first, last = (v if isinstance(v, torch.SymInt) else int(v) for v in (pair[0], pair[-1]))
    return cast("tuple[int, int]", (first, last))


def check_one_of(name: str, value: object, allowed: tuple[int, ...]) -> None:
    """Checks that an argument is an int, one of those allowed."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(str, allowed))}, got {value!r}")


def check_floats(x: Tensor) -> None:
    """Checks that x is a tensor of floats."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"x must be float32, float16 or bfloat16, got {x.dtype}")


def _same_padding(
    x: Tensor | PackedActivations,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    binary: bool,
    sign_zero: int,
) -> tuple[Tensor | PackedActivations, tuple[int, int]]:
    """Padding "same": an odd total is one zero longer below and to the right, as in ``F.conv2d``."""
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    below, right = (t % 2 for t in total)
    if isinstance(x, PackedActivations) and (below or right):
        channels = all_channels(x.channels, x.device).expand_as(x.plus)
        nonzero = channels if x.nonzero is None else x.nonzero
        plus, nonzero = (F.pad(words, (0, 0, 0, right, 0, below)) for words in (x.plus, nonzero))
        x = PackedActivations(plus, nonzero, x.channels, trusted=True)
    elif isinstance(x, Tensor) and (below or right):
        # Binarized first, so that the added zeros have no sign (conv clears sign_zero).
        x = reference.binarize(x, sign_zero) if binary else x
        x = F.pad(x, (0, right, 0, below))
    return x, (total[0] // 2, total[1] // 2)


def apply_padding(
    x: Tensor | PackedActivations,
    padding: object,
    stride: tuple[int, int],
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    binary: bool,
    sign_zero: int,
) -> tuple[Tensor | PackedActivations, tuple[int, int]]:
    """Padding as numbers; x is padded here where they differ between its sides."""
    if padding == "valid":
        return x, (0, 0)
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(f"padding must be numbers where stride is not 1: 'same' got stride {stride}")
        return _same_padding(x, kernel, dilation, binary, sign_zero)
    if isinstance(padding, str):
        raise ValueError(f"padding must be 'same', 'valid', an int or a pair of ints, got {padding!r}")
    return x, checked_pair("padding", padding, 0)


def check_optional_tensors(**tensors: object) -> None:
    """Checks that each is a tensor or None."""
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor or None, got {type(tensor).__name__}")


def check_packing(output: str, packs_shifted: bool, pack_sign_zero: int) -> None:
    """Checks what is asked of a packed output: ``output``, whether there is a pack_shift, and pack_sign_zero.

    Raises:
        TypeError: ``output`` is not a string, or ``pack_sign_zero`` is not an int.
        ValueError: one is none of its values, or there is one of the others without a packed output.
    """
    if not isinstance(output, str):
        raise TypeError(f"output must be a string, got {output!r}")
    if output not in ("float", "packed", "both"):
        raise ValueError(f"output must be 'float', 'packed' or 'both', got {output!r}")
    check_one_of("pack_sign_zero", pack_sign_zero, (0, 1))
    if output == "float" and (packs_shifted or pack_sign_zero):
        name, rest = ("pack_shift", "None") if packs_shifted else ("pack_sign_zero", "0")
        raise ValueError(f"{name} must be {rest} where output is 'float': nothing is packed")


def check_channels(x: PackedActivations, weight: PackedWeight, groups: int) -> None:
    """What the operator cannot see in words."""
    expected = weight.units * weight.unit[0] * groups
    if x.channels != expected:
        raise ValueError(
            f"x must have C_in = {expected} channels ({weight.units} units of {weight.unit[0]} in {groups} groups), "
            f"got {x.channels}"
        )


def checked_activation_bits(x: Tensor | PackedActivations, activation_bits: int | None) -> int:
    """The activation bits, 1 of packed and 32 of other x where they are not given."""
    packed = isinstance(x, PackedActivations)
    if activation_bits is None:
        return 1 if packed else 32
    check_one_of("activation_bits", activation_bits, (1, 32))
    if packed and activation_bits != 1:
        raise ValueError(f"activation_bits must be 1 where x is a PackedActivations, got {activation_bits}")
    return activation_bits
