"""The operator ``nearest``: the codeword of every unit, which training asks for at every step."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from subbit_infer.backends import cpu
from subbit_infer.core.codebook import nearest_codewords

_library = torch.library.Library("subbit_infer", "FRAGMENT")
_library.define("nearest(Tensor units, Tensor codebook) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("nearest", nearest_codewords, "CompositeExplicitAutograd")
_library.impl("nearest", cpu.nearest, "CPU")


@torch.library.register_fake("subbit_infer::nearest", lib=_library)
def _nearest_fake(units: Tensor, codebook: Tensor) -> Tensor:
    return units.new_empty(len(units), dtype=torch.int64)


def nearest(units: Tensor, codebook: Tensor) -> Tensor:
    """The nearest codeword of every unit, with the bits of :func:`subbit_infer.core.codebook.nearest_codewords`.

    Args:
        units: float32 (N, taps), taps 8 or 9, without a gradient.
        codebook: float32 (K, taps) of +-1, on the same device.

    Returns:
        int64 (N,); the first index among equally near codewords.
    """
    return cast("Tensor", torch.ops.subbit_infer.nearest(units, codebook))
