"""Self-test problems, run on a device before its kernels are trusted.

Tests cannot see every device and driver. So a kernel's first call on a device is preceded by two convolutions of small
integers, which are exact in any order of additions: one for the tiles of small calls, and one that fills the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from subbit_infer.backends.cuda.weight import Prepared, prepare
from subbit_infer.core import codebook, reference
from subbit_infer.core.conv_args import ConvArgs, OutputLayout
from subbit_infer.core.weight import PackedWeight

SIZES = ((1, 40, 9, 7, 24), (8, 32, 48, 48, 256))
"""N, C_in, H, W and C_out of the two; the second has 144 tiles of 256 pixels by 128 outputs."""

_MOST = 3  # of |x|, so that sums of 9 * 40 are exact in float16


class Problem(NamedTuple):
    """A convolution with a margin of zeros and stride 1, and its result.

    Attributes:
        weight: the prepared weight.
        args: the call, of an x of integers.
        layout: of its result.
        expected: (N, C_out, H, W) float32.
    """

    weight: Prepared
    args: ConvArgs
    layout: OutputLayout
    expected: Tensor


def _numbers(count: int, below: int, device: torch.device) -> Tensor:
    """Integers in [0, below) that look random and touch no generator's state."""
    return (torch.arange(count, device=device) * 2654435761 >> 13) % below


def problems(
    device: torch.device, unit: tuple[int, int, int], codewords: int, dtype: torch.dtype, binary: bool
) -> Iterator[Problem]:
    """The two problems of a kind, on a device."""
    g, kernel = unit[0], unit[1:]
    every = codebook.full_set(unit)
    vectors = every[torch.arange(codewords) * 37 % len(every)]  # 37 is odd, so they are different
    for n, c_in, height, width, c_out in SIZES:
        x = _numbers(n * c_in * height * width, 2 * _MOST + 1, device) - _MOST
        x = x.to(dtype).reshape(n, c_in, height, width)
        x = x.contiguous(memory_format=torch.contiguous_format if n == 1 else torch.channels_last)
        indices = _numbers(c_out * (c_in // g), codewords, torch.device("cpu")).reshape(c_out, c_in // g)
        packed = PackedWeight.from_indices(indices, vectors).to(device)
        weight = prepare(packed.packed_indices, packed.packed_codebook, packed.units, codewords, unit)
        padding = kernel[0] // 2, kernel[1] // 2
        dense = codebook.decode(indices, vectors).to(device).flatten(1)
        values = reference.binarize(x) if binary else x
        # A product of matrices: some of cuDNN's convolutions are not exact on integers.
        sums = dense @ F.unfold(values.float(), kernel, padding=padding)
        args = ConvArgs.of_weight(x, packed, padding=padding, activation_bits=1 if binary else 32)
        yield Problem(weight, args, args.output_layout(args.check()), sums.reshape(n, c_out, height, width))
