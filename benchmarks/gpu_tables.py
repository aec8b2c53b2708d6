"""Tables of what was measured on a GPU, and what this project promises there."""

from bars import Bar, labels
from grid import Grid
from layers import RESNET18, RESNET34
from results import Record, Result, total_of, total_speedup

NETWORKS = {"ResNet-18": labels(RESNET18), "ResNet-34": labels(RESNET34)}
F32, F16, A1, A1_PACKED = "f32", "f16", "A1 f16", "A1 packed"
CUDNN, CUDNN_TF32, CUDNN_F16, INT8 = "cuDNN f32", "cuDNN TF32", "cuDNN f16", "torch int8"
PLANNED = {kind: f"{kind} planned" for kind in (F32, F16, A1, A1_PACKED)}
COLUMNS = (*PLANNED.values(), CUDNN, CUDNN_TF32, CUDNN_F16, INT8)

PLANS = ("sharing", "product", "sparse", "dense")
MOST_SPARSE_TAU = 3

SHARED_BYTES = 4  # read by a gather of float32 for each output channel, unit and pixel
TAPS = 9
LATE_LAYERS = ("256>256@14", "512>512@7")


def plans_for(tau: int, binary: bool) -> tuple[str, ...]:
    """The plans that a 3x3 layer can take."""
    return tuple(plan for plan in PLANS if plan != "sparse" or (tau <= MOST_SPARSE_TAU and not binary))


def group_of(batch: int, tau: int, cache: str) -> str:
    """What the results of a batch and tau are called, with a cold or hot cache."""
    return f"batch {batch} tau {tau} {cache}"


def totals(results: list[Result]) -> list[Result]:
    """Each network's layers together, for every batch, tau and state of the cache."""
    groups = dict.fromkeys(result.group for result in results)
    found = []
    for network, counts in NETWORKS.items():
        for group in groups:
            total = total_of([r for r in results if r.group == group], counts, f"{network} {group}")
            found += [] if total is None else [total]
    return found


def of_totals(record: Record) -> Grid:
    """Milliseconds of the networks' layers together."""
    grid = Grid("3x3 layers of a network together, ms (medians)", ["", *COLUMNS])
    for total in totals(record.results):
        cells = [f"{total.ms[name].median:.3f}" if name in total.ms else "" for name in COLUMNS]
        grid.rows.append([total.label, *cells])
    return grid


def of_rates(record: Record) -> Grid:
    """What kernels reach of what the device can do, both measured in the same run; batch 256, tau 5, hot."""
    grid = Grid("Share of the device's measured best", ["", "of", *LATE_LAYERS], names=2)
    for kind, rate, bytes_or_macs in (
        ("f32 sharing", "shared_bytes", SHARED_BYTES / TAPS),
        ("f32 product", "half_macs", 3),  # three products of bfloat16
        ("f16 product", "half_macs", 1),
        ("A1 packed product", "bit_mma_macs", 1),
    ):
        shares = [_share(record, label, kind, rate, bytes_or_macs) for label in LATE_LAYERS]
        grid.rows.append([kind, rate, *("" if share is None else f"{share:.0f} %" for share in shares)])
    return grid


def of_bars(record: Record) -> Grid:
    """The promises, on whatever device this was; they were made for an H100."""
    grid = Grid("Promises (hot)", ["", "promised", "measured", "", "decided by"])
    verdicts = {True: "met", False: "NOT met", None: "not measured"}
    for bar in bars(record):
        measured = "" if bar.measured is None else f"{bar.measured:.3g} {bar.unit}"
        grid.rows.append([bar.what, f">= {bar.target:g} {bar.unit}", measured, verdicts[bar.met], bar.where])
    return grid


def bars(record: Record) -> list[Bar]:
    """Every promise."""
    five, two = (record.group(group_of(256, tau, "hot")) for tau in (5, 2))

    def total(what: str, found: list[Result], ours: str, theirs: str, target: float) -> Bar:
        speedup = total_speedup(found, NETWORKS["ResNet-18"], ours, (theirs,))
        return Bar(f"{what}, ResNet-18, batch 256", target, speedup, "x")

    def layer(label: str) -> list[Bar]:
        share = _share(record, label, "f32 sharing", "shared_bytes", SHARED_BYTES / TAPS)
        speedup = total_speedup(five, {label: 1}, "f32 sharing", (CUDNN,))
        return [
            Bar(f"f32 sharing, {label}, batch 256 : bytes of shared memory", 60, share, "%"),
            Bar(f"f32 sharing : {CUDNN}, {label}, batch 256", 1.5, speedup, "x"),
        ]

    small = [r for tau in (5, 2) for r in record.group(group_of(1, tau, "hot"))]
    same = {F32: CUDNN, F16: CUDNN_F16}
    return [
        *(bar for label in LATE_LAYERS for bar in layer(label)),
        total(f"f32 : {CUDNN}, tau 5", five, PLANNED[F32], CUDNN, 2.5),
        total(f"f16 : {CUDNN_F16}, tau 5", five, PLANNED[F16], CUDNN_F16, 0.9),
        total(f"f16 : {CUDNN_F16}, tau 2", two, PLANNED[F16], CUDNN_F16, 1.3),
        total(f"A1 packed in and out : {CUDNN_F16}, tau 5", five, PLANNED[A1_PACKED], CUDNN_F16, 4),
        total(f"A1 with f16 out : {CUDNN_F16}, tau 5", five, PLANNED[A1], CUDNN_F16, 1.5),
        _slowest(f"f16 : {CUDNN_F16}, batch 1 in graphs, every layer", small, {F16: CUDNN_F16}, 1),
        _slowest("planned : cuDNN of the same dtype, every layer and batch", record.results, same, 1 / 1.1),
    ]


def _share(record: Record, label: str, ours: str, rate: str, of_mac: float) -> float | None:
    """Percent of a rate, of which each multiply-add takes so much."""
    result = next((r for r in record.group(group_of(256, 5, "hot")) if r.label == label), None)
    if result is None or ours not in result.ms or rate not in record.rates:
        return None
    per_second = result.facts["macs"] * of_mac / (result.ms[ours].median * 1e-3)
    return float(100 * per_second / (record.rates[rate] * 1e12))


def _slowest(what: str, results: list[Result], peers: dict[str, str], target: float) -> Bar:
    found = [
        (speedup, f"{ours} {r.label}, {r.group}")
        for r in results
        for ours, peer in peers.items()
        if (speedup := r.speedup(PLANNED[ours], (peer,))) is not None
    ]
    speedup, where = min(found, default=(None, ""))
    return Bar(what, target, speedup, "x", where=where)
