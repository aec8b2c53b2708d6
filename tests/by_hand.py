"""Codebooks by the definition, element by element: what tests of codebooks compare with."""

import torch
from torch import Tensor

from subbit_infer.core.codebook import UNIT_1X1, UNIT_3X3, Unit

UNITS = [UNIT_3X3, UNIT_1X1, (2, 1, 2), (1, 1, 1)]
PAPER_UNITS = [UNIT_3X3, UNIT_1X1]


def number_by_hand(codeword: Tensor) -> int:
    return int("".join("1" if tap > 0 else "0" for tap in codeword.flatten().tolist()), 2)


def nearest_by_hand(weight: Tensor, words: Tensor) -> Tensor:
    """The index of the first codeword of least squared distance, in float64, unit by unit from the dense weight."""
    group = words.shape[1]
    rows = []
    for kernel in weight.double():
        units = [kernel[start : start + group] for start in range(0, kernel.shape[0], group)]
        distances = [[float((word - unit).square().sum()) for word in words.double()] for unit in units]
        rows.append([row.index(min(row)) for row in distances])
    return torch.tensor(rows)


def weight_for(unit: Unit, out_channels: int, units: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out_channels, units * unit[0], *unit[1:], generator=generator)
