"""Every compiled kernel against an oracle of the tests' own: the sums."""

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
)
from kernel_calls import assert_same, check, run

from subbit_infer import PackedWeight
from subbit_infer.backends import native
from subbit_infer.core.conv_args import ConvArgs, Outputs


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
