"""Every compiled kernel against an oracle of the tests' own: epilogues, packed inputs and outputs, memory's ends."""

from __future__ import annotations

import random

import pytest
import torch
from helpers import (
    MACHINE_LEVELS,
    UNIT_1X1,
    UNIT_3X3,
    GuardedFloats,
    expected_conv,
    integers,
    prepared,
    random_weight,
    run_kernel,
    signs,
)
from kernel_calls import (
    DEFAULTS,
    NAN,
    WORD_CANARY,
    assert_same,
    assert_whole,
    check_whole,
    expected_whole,
    plans,
    run_whole,
    words_of,
)

from subbit_infer import PackedWeight
from subbit_infer.core.conv_args import ConvArgs, Outputs
from subbit_infer.core.epilogue import ACTIVATIONS


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

    def test_bits_after_the_last_channel_do_not_count(self, level, packed):
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
