"""Every compiled kernel against an oracle of the tests' own: exact on integers, at every level this machine has."""

from __future__ import annotations

import random

import pytest
import torch
from helpers import (
    LEVELS,
    MACHINE_LEVELS,
    UNIT_1X1,
    UNIT_3X3,
    GuardedFloats,
    dense_weight,
    expected_conv,
    integers,
    prepared,
    random_weight,
    run_kernel,
    signs,
)

from subbit_infer import PackedWeight
from subbit_infer.backends import native
from subbit_infer.core.conv_args import ConvArgs, Outputs
from subbit_infer.core.epilogue import ACTIVATIONS

CANARY = -123456.0
WORD_CANARY = 0x5A5A5A5A5A5A5A5A
NAN = float("nan")


def run(
    x, indices, codebook, level, *, plan="sharing", threads=1, channels_last=False, scale=None, bias=None, **options
):
    """Calls the compiled convolution at a level, into an output with canaries on both sides."""
    stride, padding = options.get("stride", (1, 1)), options.get("padding", (0, 0))
    dilation, groups = options.get("dilation", (1, 1)), options.get("groups", 1)
    activation_bits, sign_zero = options.get("activation_bits", 32), options.get("sign_zero", 0)
    weight = PackedWeight.from_indices(indices, codebook)
    sizes = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.unit[1 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    ]
    shape = (x.shape[0], weight.out_channels, *sizes)
    count = shape[0] * shape[1] * shape[2] * shape[3]
    memory = torch.full((count + 64,), CANARY)
    inner = memory[32 : 32 + count]
    y = inner.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2) if channels_last else inner.view(shape)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        args = ConvArgs.of_weight(
            x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups,
            activation_bits=activation_bits, sign_zero=sign_zero,
        )._replace(scale=scale, bias=bias)  # fmt: skip
        given = prepared(weight), args, Outputs(y, None, None), shape, level
        if not run_kernel(*given, plan):  # it has no such layout, and the dense one is faster than others
            assert run_kernel(*given, "sharing")
    finally:
        torch.set_num_threads(before)
    assert (memory[:32] == CANARY).all(), "wrote before the output"
    assert (memory[32 + count :] == CANARY).all(), "wrote behind the output"
    return y


def assert_same(y: torch.Tensor, expected: torch.Tensor) -> None:
    if not torch.equal(y, expected.float()):
        wrong = (y != expected).nonzero()
        at = tuple(wrong[0].tolist())
        pytest.fail(
            f"{len(wrong)} of {y.numel()} elements differ, first at {at}: {y[at].item()}, not {expected[at].item()}"
        )


def check(unit, out_channels, in_channels, codewords, size, level, *, batch=1, groups=1, seed=0, **options):
    indices, codebook = random_weight(unit, out_channels, in_channels // groups // unit[0], codewords, seed)
    x = integers(batch, in_channels, *size, seed=seed)
    ours = {k: options.pop(k) for k in ("threads", "channels_last") if k in options}
    expected = expected_conv(x, indices, codebook, groups=groups, **options)
    for plan in plans(level, options.get("activation_bits", 32)):
        assert_same(run(x, indices, codebook, level, plan=plan, groups=groups, **ours, **options), expected)


def plans(level, activation_bits):
    """The kernels written for a level, by name, or the families that run there; where one cannot, another does."""
    kernels = [(name, of) for name, of, binary in native.kernels() if binary == (activation_bits == 1)]
    own = [name for name, of in kernels if of == level]
    return own or sorted({name.split("_")[1] for name, of in kernels if LEVELS.index(of) <= LEVELS.index(level)})


@pytest.mark.parametrize("level", MACHINE_LEVELS)
@pytest.mark.parametrize("activation_bits", [32, 1])
class TestEveryLevel:
    @pytest.mark.parametrize("codewords", [1, 2, 3, 4, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 255, 256])
    @pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
    def test_codebook_sizes(self, level, activation_bits, unit, codewords):
        check(unit, 70, 40, codewords, (9, 11), level, activation_bits=activation_bits, padding=(1, 1))

    # Either side of: a step of the gather (8), a register of tables (64 and 128 outputs), a block of units
    # (8, 14, 28, 32), a group of byte sums (14).
    @pytest.mark.parametrize("out_channels", [1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 96, 97, 127, 128, 129, 200])
    @pytest.mark.parametrize("codewords", [32, 256])
    def test_output_channels(self, level, activation_bits, codewords, out_channels):
        check(UNIT_3X3, out_channels, 5, codewords, (6, 7), level, activation_bits=activation_bits, padding=(1, 1))

    @pytest.mark.parametrize("in_channels", [1, 2, 3, 7, 8, 9, 13, 14, 15, 27, 28, 29, 31, 32, 33, 56, 57, 64, 65, 130])
    @pytest.mark.parametrize("codewords", [4, 16, 32, 64, 256])
    def test_input_channels(self, level, activation_bits, in_channels, codewords):
        check(UNIT_3X3, 9, in_channels, codewords, (5, 6), level, activation_bits=activation_bits, padding=(1, 1))

    # Either side of a tile (8, 16, 32 pixels), a word of taps (62, 64) and a strip (1024).
    @pytest.mark.parametrize(
        "size",
        [
            (1, 1),
            (1, 7),
            (7, 1),
            (3, 5),
            (4, 4),
            (7, 7),
            (1, 33),
            (2, 62),
            (3, 63),
            (2, 64),
            (3, 65),
            (1, 130),
            (40, 41),
        ],
    )
    @pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
    @pytest.mark.parametrize("codewords", [32, 256])
    def test_image_sizes(self, level, activation_bits, codewords, unit, size):
        check(unit, 10, 16, codewords, size, level, activation_bits=activation_bits, padding=(1, 1), batch=2)

    @pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1), (1, 4), (5, 2)])
    @pytest.mark.parametrize("dilation", [(1, 1), (2, 2), (3, 1), (1, 3)])
    @pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 3), (9, 0)])
    def test_geometry(self, level, activation_bits, stride, dilation, padding):
        options = {"stride": stride, "dilation": dilation, "padding": padding, "activation_bits": activation_bits}
        check(UNIT_3X3, 9, 6, 32, (11, 13), level, **options)
        check(UNIT_1X1, 9, 16, 32, (5, 6), level, **options)

    @pytest.mark.parametrize("dilation", [31, 32, 33, 40, 70])
    def test_far_taps(self, level, activation_bits, dilation):
        check(
            UNIT_3X3, 3, 2, 8, (3, 150), level, activation_bits=activation_bits, dilation=(1, dilation), padding=(1, 9)
        )

    @pytest.mark.parametrize("groups", [2, 3, 6])
    def test_groups(self, level, activation_bits, groups):
        options = {"activation_bits": activation_bits, "groups": groups}
        for codewords in (16, 256):
            check(UNIT_3X3, 12, 6, codewords, (7, 8), level, padding=(1, 1), **options)
            check(UNIT_3X3, 66 * groups, 40 * groups, codewords, (7, 8), level, padding=(1, 1), **options)
            check(UNIT_1X1, 12, 48, codewords, (7, 8), level, **options)

    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_scale_bias_threads_and_layout(self, level, activation_bits, threads, channels_last):
        for out_channels, codewords in ((5, 32), (64, 32), (70, 32), (5, 256), (70, 256)):
            scale, bias = integers(out_channels, seed=1), integers(out_channels, seed=2)
            check(
                UNIT_3X3, out_channels, 20, codewords, (15, 9), level, batch=2, padding=(1, 1), threads=threads,
                channels_last=channels_last, scale=scale, bias=bias, activation_bits=activation_bits,
            )  # fmt: skip

    def test_sign_of_zero(self, level, activation_bits):
        check(UNIT_3X3, 9, 6, 32, (8, 9), level, activation_bits=activation_bits, padding=(1, 1), sign_zero=1) if (
            activation_bits == 1
        ) else check(UNIT_3X3, 9, 6, 32, (8, 9), level, padding=(1, 1))

    @pytest.mark.parametrize("at_end", [True, False])
    @pytest.mark.parametrize("width", [1, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65])
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("codewords", [16, 256])
    def test_reads_nothing_outside_the_input(self, level, activation_bits, codewords, width, at_end, stride):
        guarded = GuardedFloats(1, 8, 3, width, at_end=at_end)
        x = guarded.tensor.copy_(integers(1, 8, 3, width))
        for unit, padding in ((UNIT_3X3, (1, 1)), (UNIT_1X1, (0, 0))):
            indices, codebook = random_weight(unit, 9, 8 // unit[0], codewords)
            options = {"stride": (stride, stride), "padding": padding}
            y = run(x, indices, codebook, level, activation_bits=activation_bits, **options)
            assert_same(y, expected_conv(x, indices, codebook, activation_bits=activation_bits, **options))

    def test_random_problems(self, level, activation_bits):
        rng = random.Random(f"{level} {activation_bits}")
        for seed in range(60):
            unit = rng.choice([UNIT_3X3, UNIT_1X1])
            groups = rng.choice([1, 1, 2, 3])
            size = rng.randint(1, 20), rng.randint(1, 40)
            check(
                unit, groups * rng.randint(1, 80), groups * unit[0] * rng.randint(1, 40), rng.randint(1, 256), size,
                level, batch=rng.randint(1, 3), groups=groups, seed=seed, activation_bits=activation_bits,
                stride=(rng.randint(1, 3), rng.randint(1, 3)), padding=(rng.randint(2, 4), rng.randint(2, 4)),
                dilation=(rng.randint(1, 2), rng.randint(1, 2)), threads=rng.randint(1, 2),
            )  # fmt: skip


@pytest.mark.parametrize("level", MACHINE_LEVELS)
def test_more_binary_taps_than_16_bits_hold(level):
    # 4096 channels of nine taps that all agree: 36864 does not fit 16 bits, so a float kernel takes the signs.
    indices, codebook = torch.zeros(3, 4096, dtype=torch.int64), torch.ones(1, 1, 3, 3)
    x = torch.full((1, 4096, 3, 3), 7.0)
    y = run(x, indices, codebook, level, activation_bits=1)
    assert y.flatten().tolist() == [36864.0] * 3


@pytest.mark.parametrize("level", MACHINE_LEVELS)
@pytest.mark.parametrize("sign_zero", [0, 1])
@pytest.mark.parametrize(("unit", "units"), [(UNIT_3X3, 3641), (UNIT_1X1, 4096)])
def test_padding_has_no_sign_where_floats_are_binarized(level, sign_zero, unit, units):
    indices, codebook = random_weight(unit, 2, units, 4)
    x = integers(1, units * unit[0], 3, 18)
    options = {"padding": (1, 1), "activation_bits": 1, "sign_zero": sign_zero}
    assert_same(run(x, indices, codebook, level, **options), expected_conv(x, indices, codebook, **options))


@pytest.mark.parametrize("level", MACHINE_LEVELS)
def test_largest_binary_sums(level):
    # The largest sums that 16 bits are used for, of both signs.
    for sign in (1, -1):
        indices, codebook = torch.zeros(2, 3640, dtype=torch.int64), torch.ones(1, 1, 3, 3)
        x = torch.full((1, 3640, 3, 3), 2.0 * sign)
        assert run(x, indices, codebook, level, activation_bits=1).flatten().tolist() == [32760.0 * sign] * 2


@pytest.mark.parametrize("level", MACHINE_LEVELS)
@pytest.mark.parametrize("channels", [27, 28, 29, 31, 32, 33, 95, 96, 97, 192, 193, 224, 225, 256])
def test_everything_differs(level, channels):
    # Every activation adds one to the counts of the bits layout: the most that bytes and 16 bits have to hold, either
    # side of the seven halves and three words that bytes are added for.
    for unit in (UNIT_3X3, UNIT_1X1):
        units = -(-channels // unit[0])
        indices, codebook = torch.zeros(3, units, dtype=torch.int64), -torch.ones(1, *unit)
        codebook = torch.cat([codebook, random_weight(unit, 1, 1, 255)[1]]).unique(dim=0)
        indices += (codebook.flatten(1) == -1).all(1).nonzero()[0]
        x = torch.full((1, units * unit[0], *unit[1:]), 0.5)
        assert run(x, indices, codebook, level, activation_bits=1).flatten().tolist() == [-float(x.numel())] * 3


@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("level", [level for level in MACHINE_LEVELS if level != "scalar"])
class TestWithoutGeneratedCode:
    """SUBBIT_JIT=0, as where a system refuses to make memory executable."""

    @pytest.mark.parametrize("codewords", [1, 2, 31, 32, 100, 256])
    def test_codebook_sizes(self, monkeypatch, level, activation_bits, unit, codewords):
        monkeypatch.setenv("SUBBIT_JIT", "0")
        for stride in (1, 2):
            options = {"padding": (1, 1), "stride": (stride, stride)}
            check(unit, 20, 40, codewords, (9, 11), level, activation_bits=activation_bits, **options)

    def test_the_same_bits(self, monkeypatch, level, activation_bits, unit):
        indices, codebook = random_weight(unit, 30, 50, 32)
        x = torch.randn(2, 50 * unit[0], 9, 17, generator=torch.Generator().manual_seed(0))
        options = {"plan": "rows", "padding": (1, 1), "activation_bits": activation_bits}
        generated = run(x, indices, codebook, level, **options)
        monkeypatch.setenv("SUBBIT_JIT", "0")
        assert torch.equal(run(x, indices, codebook, level, **options).view(torch.int32), generated.view(torch.int32))


def test_levels_threads_and_batch_splits_give_the_same_bits():
    indices, codebook = random_weight(UNIT_3X3, 70, 50, 32)
    x = torch.randn(3, 50, 15, 17, generator=torch.Generator().manual_seed(0))
    scale = torch.rand(70, generator=torch.Generator().manual_seed(1))
    first = run(x, indices, codebook, "scalar", padding=(1, 1), scale=scale)
    for level in MACHINE_LEVELS:
        for threads in (1, 2, 3):
            y = run(x, indices, codebook, level, padding=(1, 1), scale=scale, threads=threads)
            assert torch.equal(y.view(torch.int32), first.view(torch.int32))
        one = run(x[1:2], indices, codebook, level, padding=(1, 1), scale=scale)
        assert torch.equal(one.view(torch.int32), first[1:2].view(torch.int32))


@pytest.mark.parametrize("level", MACHINE_LEVELS)
def test_float_error_bound(level):
    # The sums of a unit's nine taps and then of C units take at most C + 8 roundings of values whose
    # magnitudes sum to sum |x|: |error| <= (C + 8) 2^-24 sum |x|, and a further C for the sums' own growth.
    channels = 200
    indices, codebook = random_weight(UNIT_3X3, 16, channels, 32)
    x = torch.randn(1, channels, 12, 12, generator=torch.Generator().manual_seed(0))
    y = run(x, indices, codebook, level, padding=(1, 1))
    exact = expected_conv(x, indices, codebook, padding=(1, 1))
    magnitude = torch.nn.functional.conv2d(x.abs().double(), torch.ones(16, channels, 3, 3).double(), padding=1)
    assert ((y - exact).abs() <= 2 * channels * 2.0**-24 * magnitude).all()
    assert ((y - exact).abs().max() / exact.abs().max()) < 1e-6


@pytest.mark.parametrize("level", MACHINE_LEVELS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_reach_exactly_their_receptive_field(level, value):
    indices, codebook = random_weight(UNIT_3X3, 9, 4, 32)
    x = integers(1, 4, 9, 21)
    x[0, 2, 4, 10] = value
    y = run(x, indices, codebook, level, padding=(1, 1))
    expected = torch.nn.functional.conv2d(x, dense_weight(indices, codebook), padding=1)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(1e9), expected.nan_to_num(1e9))


@pytest.mark.parametrize("level", MACHINE_LEVELS)
def test_binary_nan_counts_as_zero(level):
    indices, codebook = random_weight(UNIT_3X3, 9, 4, 32)
    x = integers(1, 4, 9, 21)
    x[0, 2, 4, 10] = float("nan")
    x[0, 1, 3, 3] = float("inf")
    y = run(x, indices, codebook, level, padding=(1, 1), activation_bits=1)
    assert_same(y, expected_conv(x, indices, codebook, padding=(1, 1), activation_bits=1))


@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("level", MACHINE_LEVELS)
def test_what_is_asked_for_is_what_runs(level, activation_bits):
    """A family, by the kernel of the highest level; or a kernel by its name."""
    indices, codebook = random_weight(UNIT_3X3, 9, 6, 32)
    weight = PackedWeight.from_indices(indices, codebook)
    best = {}
    for name, of, binary in reversed(native.kernels()):
        if binary == (activation_bits == 1) and LEVELS.index(of) <= LEVELS.index(level):
            best[name.split("_")[1]] = best[name] = name
    x = integers(1, 6, 5, 6)
    y = torch.empty(1, 9, 5, 6)
    args = ConvArgs.of_weight(x, weight, padding=(1, 1), activation_bits=activation_bits)
    for plan, kernel in best.items():
        run_kernel(prepared(weight), args, Outputs(y, None, None), y.shape, level, plan)
        assert list(prepared(weight).convs.values())[-1].kernel == kernel


class GuardedWords:
    """Words of (N, H, W, words) with canaries on both sides, poisoned."""

    def __init__(self, *shape: int) -> None:
        self._count = shape[0] * shape[1] * shape[2] * shape[3]
        self._memory = torch.full((self._count + 64,), WORD_CANARY)
        self.tensor = self._memory[32 : 32 + self._count].view(shape)

    def check(self) -> None:
        assert (self._memory[:32] == WORD_CANARY).all(), "wrote before the words"
        assert (self._memory[32 + self._count :] == WORD_CANARY).all(), "wrote behind the words"


def run_whole(x, indices, codebook, level, plan, sizes, *, output, channels_last, pack_sign_zero, threads, **options):
    """Calls a plan, or a kernel by its name, at a level with all that surrounds the sums.

    Returns y, plus and nonzero, None for what is not asked for.

    Returns None where the plan cannot run the problem, so that another would.
    """
    weight = PackedWeight.from_indices(indices, codebook)
    memory, y = poisoned_floats(sizes, channels_last)
    words = [GuardedWords(sizes[0], *sizes[2:], -(-sizes[1] // 64)) for _ in range(2)]
    plus, nonzero = (w.tensor for w in words)
    plus = None if output == "float" else plus
    nonzero = None if output == "float" or pack_sign_zero else nonzero
    scale, bias = options.pop("scale"), options.pop("bias")
    y = None if output == "packed" else y
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        args = ConvArgs.of_weight(
            x, weight, pack_sign_zero=pack_sign_zero, float_output=y is not None, packed_output=plus is not None,
            **options,
        )._replace(scale=scale, bias=bias)  # fmt: skip
        is_done = run_kernel(prepared(weight), args, Outputs(y, plus, nonzero), sizes, level, plan)
    finally:
        torch.set_num_threads(before)
    kernels = [conv.kernel for conv in prepared(weight).convs.values()]
    if not is_done or plan not in (kernels[-1], kernels[-1].split("_")[1]):
        return None
    assert (memory[:32] == CANARY).all(), "wrote before the output"
    assert (memory[-32:] == CANARY).all(), "wrote behind the output"
    for one, asked in zip(words, (plus, nonzero), strict=True):
        one.check()
        if asked is None:
            assert (one.tensor == WORD_CANARY).all(), "wrote words that nobody asked for"
    return y, plus, nonzero


def poisoned_floats(shape, channels_last):
    """Memory with canaries on both sides, and the NaNs between them as an output."""
    count = shape[0] * shape[1] * shape[2] * shape[3]
    memory = torch.full((count + 64,), CANARY)
    inner = memory[32 : 32 + count].fill_(NAN)
    y = inner.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2) if channels_last else inner.view(shape)
    return memory, y


def words_of(bits):
    """(N, C, H, W) booleans as words, a channel after the other, as the format's docstring says."""
    batch, channels, height, width = bits.shape
    words = torch.zeros(batch, height, width, -(-channels // 64), dtype=torch.int64)
    for c in range(channels):
        words[..., c // 64] |= bits[:, c].long() << c % 64
    return words


def expected_whole(x, indices, codebook, *, residual, activation, slope, shift, pack_shift, **options):
    """The epilogue in float64 from the oracle's sums, and the signs: y, plus with and without zeros, nonzero."""
    v = expected_conv(x, indices, codebook, **options)
    of_channels = lambda vector: vector.double()[:, None, None]  # noqa: E731
    v = v if residual is None else v + residual.double()
    if activation == "relu":
        v = v.relu()
    elif activation == "hardtanh":
        v = torch.nn.functional.hardtanh(v)
    elif activation == "prelu":
        v = torch.where(v > 0, v, v * of_channels(slope))
    v = v if shift is None else v + of_channels(shift)
    s = v if pack_shift is None else v + of_channels(pack_shift)
    return v, words_of(s > 0), words_of(s >= 0), words_of((s > 0) | (s < 0))


def assert_whole(made, expected, pack_sign_zero, what):
    y, plus, nonzero = made
    v, positive, not_negative, used = expected
    if y is not None:
        same = (y == v.float()) | (y.isnan() & v.isnan())
        assert same.all(), f"{what}: y differs first at {(~same).nonzero()[0].tolist()}"
    for name, words, right in (
        ("plus", plus, not_negative if pack_sign_zero else positive),
        ("nonzero", nonzero, used),
    ):
        assert words is None or torch.equal(words, right), (
            f"{what}: {name} differs first at {(words != right).nonzero()[0].tolist()}"
        )


def residual_in(layout, sizes):
    """A residual whose rows follow each other, as kernels read it."""
    if layout is None:
        return None
    if layout == "channels_last":
        return integers(*sizes, seed=5).contiguous(memory_format=torch.channels_last)
    if layout == "slice":  # of channels, and every other pixel
        return integers(sizes[0], sizes[1] + 3, sizes[2], 2 * sizes[3], seed=5)[:, 2:-1, :, ::2]
    if layout == "one channel":
        return integers(sizes[0], 1, *sizes[2:], seed=5).expand(sizes)
    return integers(*sizes, seed=5)


DEFAULTS = {
    "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "sign_zero": 0, "scale": None,
    "bias": None, "residual": None, "activation": "none", "slope": None, "shift": None, "pack_shift": None,
}  # fmt: skip


def check_whole(
    level, activation_bits, unit, in_channels, out_channels, size, *, codewords=32, batch=2, packed=None, nan=False,
    output="both", channels_last=False, pack_sign_zero=0, threads=1, residual=None, vectors=(), seed=0, **options,
):  # fmt: skip
    """Every plan of a level, with what surrounds the sums, against the oracle.

    Args:
        packed: None for float input, "zeros" or "no zeros" for packed input.
        nan: whether a bias of NaN, and NaN in the residual, make some results NaN.
        residual: its layout.
        vectors: which of scale, bias, shift and pack_shift there are.
        the rest: as everywhere.
    """
    options = DEFAULTS | options
    groups = options["groups"]
    indices, codebook = random_weight(unit, out_channels, in_channels // groups // unit[0], codewords, seed)
    x = integers(batch, in_channels, *size, seed=seed)
    names = ("scale", "bias", "shift", "pack_shift")
    options |= {name: integers(out_channels, seed=10 + names.index(name)) for name in vectors}
    if options["activation"] == "prelu":
        options["slope"] = integers(out_channels, seed=20)
    geometry = {name: options[name] for name in ("stride", "padding", "dilation", "groups")}
    spatial = [
        (size[i] + 2 * options["padding"][i] - options["dilation"][i] * (unit[1 + i] - 1) - 1) // options["stride"][i]
        + 1
        for i in (0, 1)
    ]
    sizes = (batch, out_channels, *spatial)
    options["residual"] = residual_in(residual, sizes)
    if nan:
        options["bias"] = integers(out_channels, seed=11)
        options["bias"][out_channels // 2] = NAN
        if residual is not None and residual != "one channel":
            options["residual"][-1, -1, -1, -1] = NAN
    given = {}
    if packed == "no zeros":
        x = signs(x, 1)
    if packed is not None:
        given = {"x_nonzero": words_of(x != 0) if packed == "zeros" else None}
    sums = {name: options[name] for name in ("scale", "bias", "sign_zero")} | geometry
    epilogue = {name: options[name] for name in ("residual", "activation", "slope", "shift", "pack_shift")}
    expected = expected_whole(x, indices, codebook, activation_bits=activation_bits, **sums, **epilogue)
    ran = 0
    for plan in plans(level, activation_bits):
        made = run_whole(
            x if packed is None else words_of(x > 0), indices, codebook, level, plan, sizes, output=output,
            channels_last=channels_last, pack_sign_zero=pack_sign_zero, threads=threads,
            activation_bits=activation_bits, **given, **options,
        )  # fmt: skip
        if made is not None:
            ran += 1
            assert_whole(made, expected, pack_sign_zero, plan)
    assert ran > 0


@pytest.mark.parametrize("level", MACHINE_LEVELS)
@pytest.mark.parametrize("activation_bits", [32, 1])
class TestWhatSurroundsTheSums:
    """The fused epilogue and packed outputs, of every plan at every level."""

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("residual", [None, "contiguous", "channels_last", "slice", "one channel"])
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_epilogue(self, level, activation_bits, activation, residual, channels_last):
        for output, vectors in (
            ("float", ()), ("packed", ("shift",)), ("both", ("scale", "bias", "shift", "pack_shift")),
        ):  # fmt: skip
            for out_channels, size in ((1, (1, 1)), (17, (5, 13)), (64, (3, 7)), (70, (9, 9))):
                check_whole(
                    level, activation_bits, UNIT_3X3, 5, out_channels, size, activation=activation,
                    residual=residual, channels_last=channels_last, vectors=vectors, output=output,
                )  # fmt: skip

    @pytest.mark.parametrize("out_channels", [1, 63, 64, 65, 130])
    @pytest.mark.parametrize("pack_sign_zero", [0, 1])
    @pytest.mark.parametrize("output", ["packed", "both"])
    def test_packed_outputs(self, level, activation_bits, out_channels, pack_sign_zero, output):
        for unit, stride in ((UNIT_3X3, (1, 1)), (UNIT_3X3, (2, 2)), (UNIT_1X1, (1, 1)), (UNIT_1X1, (2, 1))):
            for residual in (None, "contiguous", "channels_last"):
                for size in ((1, 1), (5, 13), (8, 8)):
                    check_whole(
                        level, activation_bits, unit, 16, out_channels, size, stride=stride, residual=residual,
                        output=output, pack_sign_zero=pack_sign_zero, padding=(unit[1] // 2, unit[2] // 2),
                        vectors=("scale", "bias", "pack_shift"), activation="hardtanh",
                    )  # fmt: skip

    @pytest.mark.parametrize("groups", [2, 3])
    @pytest.mark.parametrize("of_group", [1, 20, 64, 65])
    @pytest.mark.parametrize("output", ["float", "packed", "both"])
    def test_groups_do_not_begin_at_words(self, level, activation_bits, groups, of_group, output):
        for unit, channels_last, residual in (
            (UNIT_3X3, False, "channels_last"), (UNIT_1X1, True, "contiguous"), (UNIT_3X3, True, None),
        ):  # fmt: skip
            for pack_sign_zero in (0, 1):
                check_whole(
                    level, activation_bits, unit, 8 * groups, of_group * groups, (6, 7), groups=groups, output=output,
                    channels_last=channels_last, residual=residual, pack_sign_zero=pack_sign_zero, activation="prelu",
                    vectors=("scale", "bias", "shift", "pack_shift"),
                )  # fmt: skip

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("pack_sign_zero", [0, 1])
    @pytest.mark.parametrize("residual", [None, "contiguous", "channels_last"])
    def test_nan_in_the_result(self, level, activation_bits, activation, pack_sign_zero, residual):
        for output in ("float", "packed", "both"):
            for vectors in ((), ("shift", "pack_shift")):
                check_whole(
                    level, activation_bits, UNIT_3X3, 8, 66, (5, 7), activation=activation, residual=residual,
                    nan=True, output=output, pack_sign_zero=pack_sign_zero, vectors=vectors,
                )  # fmt: skip

    def test_random_problems(self, level, activation_bits):
        rng = random.Random(f"epilogue {level} {activation_bits}")
        for seed in range(150):
            unit, groups = rng.choice([UNIT_3X3, UNIT_1X1]), rng.choice([1, 1, 1, 2, 3])
            packed = rng.choice([None, "zeros", "no zeros"]) if activation_bits == 1 else None
            names = ("scale", "bias", "shift", "pack_shift")
            check_whole(
                level, activation_bits, unit, groups * unit[0] * rng.randint(1, 20), groups * rng.randint(1, 140),
                (rng.randint(1, 20), rng.randint(1, 40)), codewords=rng.choice([1, 2, 8, 32, 64, 65, 256]),
                batch=rng.randint(1, 3), groups=groups, packed=packed, output=rng.choice(["float", "packed", "both"]),
                stride=(rng.randint(1, 3), rng.randint(1, 3)), padding=(rng.randint(2, 4), rng.randint(2, 4)),
                dilation=(rng.randint(1, 2), rng.randint(1, 2)), threads=rng.randint(1, 2), seed=seed,
                sign_zero=0 if packed else rng.randint(0, 1), pack_sign_zero=rng.randint(0, 1),
                channels_last=rng.random() < 0.5, activation=rng.choice(ACTIVATIONS), nan=rng.random() < 0.1,
                residual=rng.choice([None, "contiguous", "channels_last", "slice", "one channel"]),
                vectors=[name for name in names if rng.random() < 0.5],
            )  # fmt: skip


@pytest.mark.parametrize("level", MACHINE_LEVELS)
@pytest.mark.parametrize("packed", ["zeros", "no zeros"])
class TestPackedInputs:
    @pytest.mark.parametrize("in_channels", [1, 63, 64, 65, 130])
    @pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 3)])
    def test_channels(self, level, packed, in_channels, stride):
        for size in ((1, 1), (5, 13), (9, 16), (4, 65)):
            for padding, dilation in (((1, 1), (1, 1)), ((2, 3), (2, 1)), ((4, 4), (4, 4))):
                check_whole(
                    level, 1, UNIT_3X3, in_channels, 66, size, packed=packed, stride=stride, padding=padding,
                    dilation=dilation,
                )  # fmt: skip

    @pytest.mark.parametrize("in_channels", [8, 56, 64, 72, 136])
    @pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
    @pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
    def test_1x1(self, level, packed, in_channels, stride, padding):
        for size in ((1, 1), (5, 13), (9, 16), (1, 130)):
            check_whole(level, 1, UNIT_1X1, in_channels, 65, size, packed=packed, stride=stride, padding=padding)

    @pytest.mark.parametrize("groups", [2, 5])
    def test_groups(self, level, packed, groups):
        for unit in (UNIT_3X3, UNIT_1X1):
            for of_group in (8, 24, 64):
                check_whole(level, 1, unit, groups * of_group, groups * 13, (6, 7), packed=packed, groups=groups)

    def test_bits_behind_the_last_channel_do_not_count(self, level, packed):
        """Nothing packs them, but words may come from elsewhere: nonzero bounds plus only where there is one."""
        indices, codebook = random_weight(UNIT_3X3, 9, 5, 32)
        x = integers(1, 5, 6, 7) if packed == "zeros" else signs(integers(1, 5, 6, 7), 1)
        plus = words_of(x > 0) | (-1 << 5)
        nonzero = words_of(x != 0) | (-1 << 5) if packed == "zeros" else None
        options = DEFAULTS | {"output": "float", "channels_last": False, "pack_sign_zero": 0, "threads": 1}
        expected = expected_conv(x, indices, codebook, activation_bits=1, padding=1)
        for plan in plans(level, 1):
            made = run_whole(
                plus, indices, codebook, level, plan, (1, 9, 6, 7), activation_bits=1, x_nonzero=nonzero, **options
            )
            assert made is not None
            assert_same(made[0], expected)


@pytest.mark.parametrize("level", MACHINE_LEVELS)
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("packed", [None, "zeros"])
def test_touches_nothing_outside_what_it_is_given(level, packed, layout, at_end):
    """Everything that a call reads or writes against pages that cannot be."""

    def guarded(values):
        """The same values in guarded memory, in the same order there."""
        words = values.dtype == torch.int64
        dense = values.permute(0, 2, 3, 1) if layout == "channels_last" and values.dim() == 4 and not words else values
        shape = dense.shape if not words else (*dense.shape[:-1], 2 * dense.shape[-1])
        memory = GuardedFloats(*shape, at_end=at_end)
        kept.append(memory)
        inside = memory.tensor.view(torch.int64) if words else memory.tensor
        inside.copy_(dense)
        return inside.permute(0, 3, 1, 2) if dense is not values else inside

    for unit, stride, out_channels, width in (
        (UNIT_3X3, (1, 1), 1, 3), (UNIT_3X3, (1, 1), 65, 13), (UNIT_3X3, (2, 2), 18, 16), (UNIT_3X3, (1, 1), 64, 64),
        (UNIT_1X1, (1, 1), 70, 9), (UNIT_1X1, (1, 2), 33, 17),
    ):  # fmt: skip
        kept: list[GuardedFloats] = []
        padding = (unit[1] // 2, unit[2] // 2)
        indices, codebook = random_weight(unit, out_channels, 72 // unit[0], 32)
        weight = PackedWeight.from_indices(indices, codebook)
        x = integers(1, 72, 3, width)
        geometry = {"stride": stride, "padding": padding}
        sums = expected_conv(x, indices, codebook, activation_bits=1, **geometry)
        sizes = tuple(sums.shape)
        residual = integers(*sizes, seed=1)
        shift, pack_shift, slope = (integers(out_channels, seed=seed) for seed in (2, 3, 4))
        expected = expected_whole(
            x, indices, codebook, activation_bits=1, residual=residual, activation="prelu", slope=slope, shift=shift,
            pack_shift=pack_shift, **geometry,
        )  # fmt: skip
        given = guarded(words_of(x > 0)) if packed else guarded(x)
        x_nonzero = guarded(words_of(x != 0)) if packed else None
        vectors = {"shift": guarded(shift), "pack_shift": guarded(pack_shift), "slope": guarded(slope)}
        added = guarded(residual)
        for plan in plans(level, 1):
            for output in ("float", "packed", "both"):
                y = guarded(torch.full(sizes, NAN)) if output != "packed" else None
                words = torch.full((1, *sizes[2:], -(-out_channels // 64)), WORD_CANARY)
                plus, nonzero = (None, None) if output == "float" else (guarded(words), guarded(words))
                args = ConvArgs.of_weight(
                    given, weight, stride=stride, padding=padding, activation_bits=1, residual=added,
                    activation="prelu", x_nonzero=x_nonzero, float_output=y is not None,
                    packed_output=plus is not None, **vectors,
                )  # fmt: skip
                assert run_kernel(prepared(weight), args, Outputs(y, plus, nonzero), sizes, level, plan)
                assert_whole((y, plus, nonzero), expected, 0, plan)
