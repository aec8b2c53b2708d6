"""Units, codebooks and the nearest-codeword assignment.

A *unit* is the piece of a weight tensor that one index stands for, described by its shape ``(g, kh, kw)``: one 3x3
kernel of one input channel, ``UNIT_3X3``, or eight consecutive input channels of a 1x1 kernel, ``UNIT_1X1``. A
*codebook* is a float32 tensor ``(K, g, kh, kw)`` of +1 and -1. The *number* of a codeword is the paper's index of it in
the full set of ``2**taps`` codewords: its taps read as bits in C order, most significant first, with 1 for +1.

Source: "Sub-bit Neural Networks" (Wang et al., ICCV 2021), main paper and supplement, Table 5 and sections C and E.
"""

import math

import torch
from torch import Tensor

from subbit_infer.core.bits import bits_of_numbers, numbers_of_bits
from subbit_infer.core.units import (
    MAX_CODEWORDS,
    MAX_TAPS,
    MAX_TAU,
    UNIT_1X1,
    UNIT_3X3,
    Unit,
    check_finite,
    check_real,
    check_signs,
    check_tau,
    check_unit,
    check_weight,
    checked_taps,
    default_unit,
    tau_of,
)

__all__ = [
    "MAX_CODEWORDS",
    "MAX_KMEANS_TAPS",
    "MAX_TAPS",
    "MAX_TAU",
    "UNIT_1X1",
    "UNIT_3X3",
    "Unit",
    "as_units",
    "assign",
    "check_codebook",
    "decode",
    "default_unit",
    "equal_intervals",
    "full_set",
    "hamming_kmeans",
    "most_frequent",
    "numbers",
    "tau_of",
    "units_of",
    "vanilla",
]

MAX_KMEANS_TAPS = 9  # of a set whose codewords are compared with each other: 512 x 512

# Of hamming_kmeans. They find codebooks that change up to 3 % fewer signs than the search from the most frequent units
# alone (random 1x1 layers at tau = 5); eight found no better ones. On one core 512x512 kernels take 0.12 s at tau = 5
# and 0.65 s at tau = 8.
_RANDOM_STARTS = 4

# One chunk of assign's dot products. Any size gives the same result; this one stays in the cache, which made it four
# times as fast as chunks of 32 MiB (0.07 s against 0.31 s for 512x512 kernels and 256 codewords on two cores).
_CHUNK_BYTES = 4 * 2**20


def full_set(unit: Unit = UNIT_3X3) -> Tensor:
    """Lists all codewords of a unit in the paper's order: codeword n is at position n.

    Args:
        unit: (g, kh, kw), of at most 16 taps.

    Returns:
        float32 (2**taps, g, kh, kw) of +1 and -1.

    Raises:
        TypeError: ``unit`` is not three integers.
        ValueError: A side of ``unit`` below 1, or more than 16 taps.

    Source: main paper, the sets K and K'; supplement, Table 5 ("Full set").
    """
    taps = checked_taps(unit)
    return _codewords(torch.arange(2**taps), unit)


def numbers(codewords: Tensor) -> Tensor:
    """Gives each codeword's number, the inverse of indexing ``full_set``.

    Args:
        codewords: real (K, g, kh, kw) of +1 and -1, at most 16 taps, any K.

    Returns:
        int64 (K,), on the device of ``codewords``.

    Raises:
        TypeError: Not a tensor, or a complex or boolean one.
        ValueError: Another rank, more than 16 taps, or a value other than +1 and -1.

    Source: main paper, the index of a binary kernel; supplement, section E.
    """
    check_real("codewords", codewords)
    if codewords.ndim != 4:
        raise ValueError(f"codewords must have shape (K, g, kh, kw), got {tuple(codewords.shape)}")
    checked_taps((codewords.shape[1], codewords.shape[2], codewords.shape[3]))
    check_signs("codewords", codewords)
    return numbers_of_bits((codewords > 0).flatten(1).flip(1))


def as_units(codebook: Tensor) -> Tensor:
    """Brings the shape of a codebook into the form (K, g, kh, kw); looks at no value.

    Args:
        codebook: floating or integer, (K, g, kh, kw), (K, kh, kw) for g = 1, or (K, g) for 1x1 taps; 1 <= K <= 256.

    Returns:
        (K, g, kh, kw), a view.

    Raises:
        TypeError: Not a tensor, or a complex or boolean one.
        ValueError: Another shape, no tap, or K out of range.
    """
    check_real("codebook", codebook)
    shape = tuple(codebook.shape)
    if codebook.ndim not in (2, 3, 4):
        raise ValueError(f"codebook must have shape (K, g, kh, kw), (K, kh, kw) or (K, g), got {shape}")
    if not 1 <= shape[0] <= MAX_CODEWORDS:
        raise ValueError(f"codebook must hold 1 to {MAX_CODEWORDS} codewords, got {shape[0]}")
    if 0 in shape:
        raise ValueError(f"codebook must have codewords of at least one tap, got shape {shape}")
    return codebook.reshape({4: shape, 3: (shape[0], 1, *shape[1:]), 2: (*shape, 1, 1)}[codebook.ndim])


def check_codebook(codebook: Tensor) -> Tensor:
    """Checks a codebook and brings it into the one form the package uses.

    Args:
        codebook: +1 and -1, in a shape that :func:`as_units` takes.

    Returns:
        float32 contiguous (K, g, kh, kw), detached, on the same device; it may share memory with ``codebook``.

    Raises:
        TypeError: as :func:`as_units`.
        ValueError: as :func:`as_units`, or a value other than +1 and -1.

    Source: supplement, Table 5 ("Element of a set/subset", "Subset").
    """
    units = as_units(codebook)
    check_signs("codebook", units)
    return units.detach().to(torch.float32).contiguous()


def vanilla(
    tau: int, unit: Unit = UNIT_3X3, *, seed: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Draws 2**tau codewords at random without repeats, as Vanilla-SNN does for each layer.

    Args:
        tau: Bits of an index, 1 to 8 and at most the taps of ``unit``.
        unit: (g, kh, kw), of at most 16 taps.
        seed: Makes the draw repeatable, without touching torch's global generator.
        generator: The generator to draw from instead; with neither, torch's global one.

    Returns:
        float32 (2**tau, g, kh, kw) on the CPU, sorted by number.

    Raises:
        TypeError: ``tau`` or a side of ``unit`` is not an integer.
        ValueError: ``tau`` or ``unit`` out of range, or both ``seed`` and ``generator`` given.

    Source: main paper, "Vanilla-SNN" (random subsets, layer by layer).
    """
    check_tau(tau, unit)
    if seed is not None:
        if generator is not None:
            raise ValueError(f"seed and generator exclude each other, got seed {seed} and a generator")
        generator = torch.Generator().manual_seed(seed)
    device = torch.device("cpu") if generator is None else generator.device
    drawn = torch.randperm(2 ** checked_taps(unit), generator=generator, device=device)[: 2**tau]
    return _codewords(drawn.cpu().sort().values, unit)


def equal_intervals(tau: int, unit: Unit = UNIT_3X3) -> Tensor:
    """Takes 2**tau codewords at equal intervals of the full set, beginning with number 0 (Baseline A).

    Args:
        tau: Bits of an index, 1 to 8 and at most the taps of ``unit``.
        unit: (g, kh, kw), of at most 16 taps.

    Returns:
        float32 (2**tau, g, kh, kw), sorted by number.

    Raises:
        TypeError: ``tau`` or a side of ``unit`` is not an integer.
        ValueError: ``tau`` or ``unit`` out of range.

    Source: supplement, section E, Baseline A.
    """
    check_tau(tau, unit)
    return _codewords(torch.arange(2**tau) * 2 ** (checked_taps(unit) - tau), unit)


def most_frequent(weight: Tensor, tau: int, unit: Unit | None = None) -> Tensor:
    """Takes the 2**tau most frequent units of a 1-bit layer's weight (Baseline B).

    Args:
        weight: real (C_out, C_in, kh, kw); its sign is counted, with +1 for 0.
        tau: Bits of an index, 1 to 8 and at most the taps of ``unit``.
        unit: (g, kh, kw), of at most 16 taps; by default that of ``default_unit``.

    Returns:
        float32 (2**tau, g, kh, kw) on the device of ``weight``, most frequent first and the lower number first among
        equals. Where fewer distinct units occur, the unused codewords of lowest number follow.

    Raises:
        TypeError: ``weight`` is not a real tensor, or ``tau`` or a side of ``unit`` is not an integer.
        ValueError: ``weight`` does not divide into such units or is not finite, or ``tau`` or ``unit`` is out of range.

    Source: supplement, section E, Baseline B.
    """
    unit, counts = _counts(weight, tau, unit)
    return _codewords(counts.argsort(descending=True, stable=True)[: 2**tau], unit)


def hamming_kmeans(weight: Tensor, tau: int, unit: Unit | None = None, *, seed: int = 0) -> Tensor:
    """Looks for the 2**tau codewords that change the fewest signs of a 1-bit layer's weight.

    Each unit goes to the codeword from which the fewest of its signs differ. The codebook for which these differences
    add up to least is searched for by exchange: of all pairs of a codeword in it and one outside, the pair that saves
    most is exchanged, until none saves anything; that need not be the least of all. The search begins once with the
    most frequent units and then with random ones; the best result counts, so it never changes more signs than the most
    frequent units do.

    Args:
        weight: real (C_out, C_in, kh, kw); its sign counts, with +1 for 0.
        tau: Bits of an index, 1 to 8 and at most the taps of ``unit``.
        unit: (g, kh, kw), of at most 9 taps; by default that of ``default_unit``.
        seed: Of the random beginnings.

    Returns:
        float32 (2**tau, g, kh, kw) on the device of ``weight``, sorted by number.

    Raises:
        TypeError: ``weight`` is not a real tensor, or ``tau`` or a side of ``unit`` is not an integer.
        ValueError: ``weight`` does not divide into such units or is not finite, or ``tau`` or ``unit`` is out of range.

    Source: Kaufman and Rousseeuw, "Finding Groups in Data" (1990), chapter 2 (PAM), and Schubert and Rousseeuw,
    "Faster k-Medoids Clustering" (2019), for the exchange; supplement, section E, for what it improves on.
    """
    unit, counts = _counts(weight, tau, unit)
    if (taps := checked_taps(unit)) > MAX_KMEANS_TAPS:
        raise ValueError(f"unit must have at most {MAX_KMEANS_TAPS} taps for k-means, got {taps} in {unit}")
    counts = counts.cpu()
    signs = full_set(unit).flatten(1).to(torch.float64)
    # What it costs if the units of number p all become codeword q; whole numbers, which float64 adds exactly.
    costs = counts[:, None] * (taps - signs @ signs.t()) / 2
    generator = torch.Generator().manual_seed(seed)
    starts = [counts.argsort(descending=True, stable=True)]
    starts += [torch.randperm(2**taps, generator=generator) for _ in range(_RANDOM_STARTS)]
    best, least = starts[0], math.inf
    for start in starts:
        chosen = _exchange(costs, start[: 2**tau])
        if (cost := float(costs[:, chosen].amin(1).sum())) < least:
            best, least = chosen, cost
        if least == 0:
            break
    return _codewords(best.sort().values.to(weight.device), unit)


def units_of(weight: Tensor, unit: Unit) -> Tensor:
    """Cuts a weight into units; g units of input channels are consecutive channels.

    Args:
        weight: real (C_out, C_in, kh, kw), C_in of one group for a grouped convolution.
        unit: (g, kh, kw).

    Returns:
        (C_out, C_in / g, g, kh, kw) of the weight's dtype and device, a view where the strides allow one.

    Raises:
        TypeError: ``weight`` is not a real tensor, or ``unit`` is not three integers.
        ValueError: Another rank or kernel size, or C_in is no multiple of g.

    Source: supplement, section C and Table 5.
    """
    check_weight(weight)
    check_unit(unit)
    out_channels, in_channels, *kernel_size = weight.shape
    group, *taps = unit
    if kernel_size != taps:
        raise ValueError(f"weight must have the unit's kernel size {tuple(taps)}, got {tuple(kernel_size)}")
    if in_channels % group:
        raise ValueError(f"weight must have input channels in multiples of the unit's {group}, got {in_channels}")
    return weight.reshape(out_channels, in_channels // group, group, *taps)


def assign(weight: Tensor, codebook: Tensor, *, chunk: int | None = None) -> Tensor:
    """Finds the nearest codeword of every unit.

    All codewords have the same length, so the least squared distance is the greatest dot product. That is summed tap by
    tap in float32: each product is exact and the order is fixed, so the answer is the same for any chunk and any number
    of threads.

    Args:
        weight: real and finite in float32, (C_out, C_in, kh, kw).
        codebook: as ``check_codebook`` takes it; it is moved to the weight's device.
        chunk: Units compared at once; the dot products take ``4 * K * chunk`` bytes. By default 4 MiB of them.

    Returns:
        int64 (C_out, C_in / g), on the weight's device; the first index among equally near codewords.

    Raises:
        TypeError: ``weight`` or ``codebook`` is not a real tensor.
        ValueError: The codebook is invalid, the weight does not divide into its units or is not finite, or ``chunk`` is
            below 1.

    Source: main paper, the binarization of SNN (argmin of the squared distance); supplement, section C.
    """
    check_weight(weight)
    codewords = check_codebook(codebook).to(weight.device)
    _, group, kh, kw = codewords.shape
    units = units_of(weight, (group, kh, kw))
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    rows = units.detach().to(torch.float32).reshape(-1, group * kh * kw)
    check_finite(rows)
    return nearest_codewords(rows, codewords.flatten(1), chunk).reshape(units.shape[:2])


def nearest_codewords(units: Tensor, codewords: Tensor, chunk: int | None = None) -> Tensor:
    """The search of :func:`assign`, of flat and finite float32 units (N, taps) and codewords (K, taps) of +-1.

    Returns:
        int64 (N,).
    """
    chunk = chunk or max(1, _CHUNK_BYTES // (4 * len(codewords)))
    columns = codewords.t().contiguous()
    nearest = torch.empty(len(units), dtype=torch.int64, device=units.device)
    for start in range(0, len(units), chunk):
        nearest[start : start + chunk] = _dot_products(units[start : start + chunk], columns).argmax(1)
    return nearest


def decode(indices: Tensor, codebook: Tensor) -> Tensor:
    """Writes the indices out as a dense binary weight.

    Args:
        indices: integer (C_out, U), each 0 to K - 1.
        codebook: as ``check_codebook`` takes it; it is moved to the indices' device.

    Returns:
        float32 contiguous (C_out, U * g, kh, kw) of +1 and -1.

    Raises:
        TypeError: ``indices`` is not an integer tensor, or ``codebook`` not a real one.
        ValueError: The codebook is invalid, or ``indices`` has another rank or a value out of range.

    Source: main paper, the indices of an SNN's weights; supplement, section C.
    """
    if not isinstance(indices, Tensor):
        raise TypeError(f"indices must be a tensor, got {type(indices).__name__}")
    if indices.dtype.is_floating_point or indices.dtype.is_complex or indices.dtype == torch.bool:
        raise TypeError(f"indices must have an integer dtype, got {indices.dtype}")
    if indices.ndim != 2:
        raise ValueError(f"indices must have shape (C_out, U), got {tuple(indices.shape)}")
    codewords = check_codebook(codebook).to(indices.device)
    count, group, kh, kw = codewords.shape
    wide = indices.to(torch.int64)
    outside = (wide < 0) | (wide >= count)
    if outside.any():
        at = outside.nonzero()[0].tolist()
        raise ValueError(f"indices must be 0 to {count - 1}, got {int(wide[tuple(at)])} at {at}")
    out_channels, units = indices.shape
    return codewords[wide].reshape(out_channels, units * group, kh, kw)


def _counts(weight: Tensor, tau: int, unit: Unit | None) -> tuple[Unit, Tensor]:
    """Checks what a codebook is to be made from; gives the unit and how often each number occurs, int64 (2**taps,)."""
    if unit is None:
        check_weight(weight)
        unit = default_unit((weight.shape[2], weight.shape[3]))
    check_tau(tau, unit)
    units = units_of(weight, unit)
    check_finite(weight)
    found = numbers_of_bits((units >= 0).flatten(0, 1).flatten(1).flip(1))
    return unit, torch.bincount(found, minlength=2 ** checked_taps(unit))


def _exchange(costs: Tensor, chosen: Tensor) -> Tensor:
    """Exchanges columns of ``costs`` (P, Q) among those chosen, (K,), while the sum of their rows' minima decreases."""
    while True:
        # Each row's best and second best of the chosen columns: what is left to it if the best one goes.
        least, places = costs[:, chosen].topk(2, dim=1, largest=False)
        best, second = least[:, :1], least[:, 1:]
        added = costs.minimum(best)  # with column q beside the chosen ones
        # Rows whose column goes take q or their second best. changes[c, q]: of the sum, with q instead of chosen[c].
        changes = costs.new_zeros(len(chosen), costs.shape[1])
        changes.index_add_(0, places[:, 0], costs.minimum(second) - added)
        changes += added.sum(0) - best.sum()
        if changes.min() >= 0:
            return chosen
        out, into = divmod(int(changes.argmin()), costs.shape[1])
        chosen = chosen.clone()
        chosen[out] = into


def _dot_products(rows: Tensor, columns: Tensor) -> Tensor:
    """Gives float32 (N, K), the product of (N, taps) and (taps, K), added up in the order of the taps."""
    total = rows[:, :1] * columns[0]
    for tap in range(1, columns.shape[0]):
        total.addcmul_(rows[:, tap : tap + 1], columns[tap])
    return total


def _codewords(found: Tensor, unit: Unit) -> Tensor:
    """Gives float32 (N, g, kh, kw), the codewords with the numbers int64 (N,)."""
    bits = bits_of_numbers(found, checked_taps(unit)).flip(1)
    return (2 * bits - 1).to(torch.float32).reshape(-1, *unit)
