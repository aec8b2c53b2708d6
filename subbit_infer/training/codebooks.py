"""Where the codewords of a layer come from, and how they change in training."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from subbit_infer.core import codebook
from subbit_infer.core.bits import bits_of_numbers, numbers_of_bits
from subbit_infer.core.units import Unit
from subbit_infer.training import ranks
from subbit_infer.training.config import Config
from subbit_infer.training.latent import SubbitWeight

MEMORY = 1e-3
"""A codeword's sign stays while its pattern's magnitude is below this (published training code)."""

LIMIT = 3.0
"""Patterns are kept within +-LIMIT (published training code)."""


_SUMMED = 4096  # units whose one-hot vectors, 8 bytes a codeword, are held at once


def start(config: Config, unit: Unit, units: Tensor, seed: int) -> Tensor | None:
    """The codebook that training begins with, (K, taps) of +-1; None for 1-bit.

    Random codewords are those of ``subbit_infer.codebook.vanilla``.

    Args:
        config: the method and tau.
        unit: (g, kh, kw).
        units: of the standardized latent weight, (C_out * U, taps).
        seed: of random codewords.
    """
    if config.method == "1-bit":
        return None
    if config.method == "baseline-a":
        return codebook.equal_intervals(config.tau, unit).flatten(1)
    if config.method in ("baseline-b", "baseline-b10"):
        return most_frequent(units, 2**config.tau)
    if config.method == "clustered":
        return spread_pairs(config.tau, units.shape[1], seed)
    return codebook.vanilla(config.tau, unit=unit, seed=seed).flatten(1)


def spread_pairs(tau: int, taps: int, seed: int) -> Tensor:
    """Codewords far from each other, each with its negative: (2^tau, taps) of +-1, the negatives last.

    The first is drawn at random; each next one is as far as can be from all before it and from their negatives, drawn
    at random among equally far ones.
    """
    generator = torch.Generator().manual_seed(seed)
    candidates = codewords_of(torch.arange(2 ** (taps - 1)), taps)  # one of each pair
    candidates = candidates[torch.randperm(len(candidates), generator=generator)]
    nearness = torch.zeros(len(candidates))  # the greatest magnitude of a product with those that are chosen
    chosen = []
    for _ in range(2**tau // 2):
        chosen.append(int(nearness.argmin()))
        nearness = torch.maximum(nearness, (candidates @ candidates[chosen[-1]]).abs())
    half = candidates[chosen]
    return torch.cat([half, -half])


def numbers_of(units: Tensor) -> Tensor:
    """A number per row of signs, int64: bit t is 1 where tap t is not negative."""
    return numbers_of_bits(units >= 0)


def codewords_of(numbers: Tensor, taps: int) -> Tensor:
    """The inverse of :func:`numbers_of`: float32 (K, taps) of +-1."""
    return bits_of_numbers(numbers, taps).to(torch.float32) * 2 - 1


def most_frequent(units: Tensor, count: int) -> Tensor:
    """The most frequent signs of units, (count, taps); of equally frequent ones those with the smaller numbers.

    Source: supplement, section E (Baseline B).
    """
    taps = units.shape[1]
    frequency = torch.bincount(numbers_of(units), minlength=2**taps)
    order = torch.sort(frequency, descending=True, stable=True).indices
    return codewords_of(order[:count], taps)


@torch.no_grad()
def refine_(weight: SubbitWeight, latent: Tensor, rate: float) -> None:
    """Changes a layer's codebook as its method says, after a step of the optimizer.

    Args:
        weight: the layer's parametrization; its step counter goes up by one.
        latent: its latent weight, as the step left it.
        rate: the learning rate of the latent weight.

    Raises:
        ValueError: a latent weight is not finite; looked at every ``config.every`` steps.
    """
    config, step, is_due = weight.config, weight.steps, weight.is_due
    if is_due and not bool(latent.isfinite().all()):
        raise ValueError(f"latent weights must be finite, one is not after step {step + 1}: the training diverged")
    codebook = weight.codebook
    if codebook is None:
        pass
    elif config.method == "baseline-b" or (config.method == "baseline-b10" and step % 10 == 9):
        codebook.copy_(most_frequent(weight.units(weight.standardized(latent)), len(codebook)))
    elif config.method == "snn" and is_due:
        _refine_patterns(weight, rate * config.refine_rate, step)
    elif config.method == "clustered" and is_due and weight.progress < config.until:
        _cluster(weight, weight.units(weight.standardized(latent)), step)
    weight.count_steps(step + 1)


def _refine_patterns(weight: SubbitWeight, rate: float, step: int) -> None:
    """A step of gradient descent on the patterns; codewords that became equal are drawn anew.

    Source: main paper, the refinement of subsets; its published training code for the numbers.
    """
    codebook, patterns = weight.codebook, weight.patterns
    assert codebook is not None
    assert patterns is not None
    grad = torch.zeros_like(patterns) if weight.pattern_grad is None else weight.pattern_grad
    patterns.sub_(rate * (ranks.sum_(grad) / ranks.count())).clamp_(-LIMIT, LIMIT)
    turned = patterns.abs() >= MEMORY
    codebook.copy_(torch.where(turned, torch.where(patterns > 0, 1.0, -1.0), codebook))
    fresh = _replace_duplicates(codebook, weight.seed + step)
    patterns[fresh] = patterns[fresh].abs() * codebook[fresh]


def _replace_duplicates(codebook: Tensor, seed: int) -> Tensor:
    """Draws codewords that are not in the codebook in the place of those that are in it already; says which rows.

    The draw is seeded, so that it is the same on every rank.
    """
    taps = codebook.shape[1]
    numbers = numbers_of(codebook).cpu()
    seen: set[int] = set()
    rows = []
    for row, number in enumerate(numbers.tolist()):
        if number in seen:
            rows.append(row)
        seen.add(number)
    if rows:
        order = torch.randperm(2**taps, generator=torch.Generator().manual_seed(seed)).tolist()
        fresh = [number for number in order if number not in seen][: len(rows)]
        codebook[rows] = codewords_of(torch.tensor(fresh), taps).to(codebook.device)
    return torch.tensor(rows, dtype=torch.int64, device=codebook.device)


def _cluster(weight: SubbitWeight, units: Tensor, step: int) -> None:
    """A step of k-means on units up to their sign: a codeword becomes the signs of the sum of the units of its pair.

    Pairs without units, and all but the first of equal ones, are restarted at the signs of the units that are farthest
    from their codewords; at random where there are not enough different ones.
    """
    codebook = weight.codebook
    assert codebook is not None
    pairs, taps = len(codebook) // 2, codebook.shape[1]
    indices = weight.nearest(units)
    turned = units * torch.where(indices < pairs, 1.0, -1.0)[:, None]
    pair_of = indices % pairs
    sums = _sums(turned, pair_of, pairs)
    moved = torch.where(sums == 0, codebook[:pairs], sums.sign())
    used = torch.bincount(pair_of, minlength=pairs) > 0
    distance = units.abs().sum(1) - (turned * moved[pair_of]).sum(1)  # twice what the wrong signs weigh
    farthest = _pair_numbers(units[torch.sort(distance, descending=True, stable=True).indices])
    seen: set[int] = set()
    rows = []
    for row, (number, is_used) in enumerate(zip(_pair_numbers(moved).tolist(), used.tolist(), strict=True)):
        if number in seen or not is_used:
            rows.append(row)
        else:
            seen.add(number)
    if rows:
        drawn = torch.randperm(2 ** (taps - 1), generator=torch.Generator().manual_seed(weight.seed + step)).tolist()
        fresh: list[int] = []
        for number in itertools.chain(farthest.tolist(), drawn):
            if len(fresh) == len(rows):
                break
            if number not in seen:
                seen.add(number)
                fresh.append(number)
        moved[rows] = codewords_of(torch.tensor(fresh, device=moved.device), taps)
    codebook.copy_(torch.cat([moved, -moved]))


def _pair_numbers(units: Tensor) -> Tensor:
    """The number of each unit's signs or of their negatives', whichever is less: int64, below 2^(taps - 1)."""
    numbers = numbers_of(units)
    return torch.minimum(numbers, 2 ** units.shape[1] - 1 - numbers)


def _sums(units: Tensor, rows: Tensor, count: int) -> Tensor:
    """The sum of the units of each row, (count, taps).

    By products with one-hot vectors: ``index_add_`` adds in no fixed order on a GPU, and ranks would part.
    """
    sums = units.new_zeros(count, units.shape[1])
    for part, where in zip(units.split(_SUMMED), rows.split(_SUMMED), strict=True):
        sums.addmm_(F.one_hot(where, count).to(part.dtype).t(), part)
    return sums
