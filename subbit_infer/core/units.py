"""Units and the sizes of codebooks: their limits, and checks of what is cut into units."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Unit = tuple[int, int, int]

UNIT_3X3: Unit = (1, 3, 3)
UNIT_1X1: Unit = (8, 1, 1)

MAX_CODEWORDS = 256
MAX_TAU = 8
MAX_TAPS = 16  # of a set that is listed whole: 65,536 codewords


def default_unit(kernel_size: tuple[int, int]) -> Unit:
    """Gives the paper's unit for a kernel size.

    Args:
        kernel_size: (kh, kw) of the convolution.

    Returns:
        ``UNIT_3X3`` for (3, 3), ``UNIT_1X1`` for (1, 1).

    Raises:
        ValueError: Another kernel size, for which the paper has no unit.

    Source: supplement, Table 5.
    """
    if kernel_size == (3, 3):
        return UNIT_3X3
    if kernel_size == (1, 1):
        return UNIT_1X1
    raise ValueError(f"kernel_size must be (3, 3) or (1, 1) to have a default unit, got {kernel_size}")


def tau_of(codewords: int) -> int:
    """Gives the bits of an index into a codebook.

    Args:
        codewords: K, the number of codewords, at least 1.

    Returns:
        ``max(1, ceil(log2(K)))``.

    Raises:
        ValueError: K below 1.

    Source: supplement, Table 5 ("SNN bits").
    """
    if codewords < 1:
        raise ValueError(f"codewords must be at least 1, got {codewords}")
    return max(1, (codewords - 1).bit_length())


def check_unit(unit: Unit) -> None:
    """Checks that a unit is three positive integers.

    Raises:
        TypeError: it is not three integers.
        ValueError: a side is below 1.
    """
    if len(unit) != 3 or any(isinstance(side, bool) or not isinstance(side, int) for side in unit):
        raise TypeError(f"unit must be three integers (g, kh, kw), got {unit}")
    if min(unit) < 1:
        raise ValueError(f"unit must have sides of at least 1, got {unit}")


def checked_taps(unit: Unit) -> int:
    """Checks a unit whose full set is numbered, and gives its taps."""
    check_unit(unit)
    taps = math.prod(unit)
    if taps > MAX_TAPS:
        raise ValueError(f"unit must have at most {MAX_TAPS} taps, got {taps} in {unit}")
    return taps


def check_tau(tau: int, unit: Unit) -> None:
    """Checks the bits of an index into a codebook of such units.

    Raises:
        TypeError: ``tau`` or a side of ``unit`` is not an integer.
        ValueError: ``tau`` or ``unit`` out of range.
    """
    if isinstance(tau, bool) or not isinstance(tau, int):
        raise TypeError(f"tau must be an integer, got {type(tau).__name__}")
    most = min(MAX_TAU, checked_taps(unit))
    if not 1 <= tau <= most:
        raise ValueError(f"tau must be 1 to {most} for a unit {unit}, got {tau}")


def check_real(name: str, tensor: Tensor) -> None:
    """Checks that something is a tensor of floats or integers.

    Raises:
        TypeError: it is no tensor, or a complex or boolean one.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must have a floating or integer dtype, got {tensor.dtype}")


def check_weight(weight: Tensor) -> None:
    """Checks that a weight is a real tensor of four dimensions.

    Raises:
        TypeError: as :func:`check_real`.
        ValueError: it has another rank.
    """
    check_real("weight", weight)
    if weight.ndim != 4:
        raise ValueError(f"weight must have shape (C_out, C_in, kh, kw), got {tuple(weight.shape)}")


def check_signs(name: str, tensor: Tensor) -> None:
    """Checks that a tensor holds only +1 and -1.

    Raises:
        ValueError: it holds another value; the message names the first.
    """
    # In float64, because a uint8 255 compares equal to -1.
    wrong = tensor.detach().to(torch.float64).abs() != 1
    if wrong.any():
        at = wrong.nonzero()[0].tolist()
        raise ValueError(f"{name} must hold only +1 and -1, got {tensor[tuple(at)].item()} at {at}")


def check_finite(tensor: Tensor) -> None:
    """Checks that a weight holds no infinity and no NaN.

    Raises:
        ValueError: it does.
    """
    finite = torch.isfinite(tensor)
    if not finite.all():
        bad = tensor[~finite]
        raise ValueError(f"weight must be finite, got {bad[0].item()} first and {bad.numel()} such values in all")
