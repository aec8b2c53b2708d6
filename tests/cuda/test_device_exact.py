"""Every kernel on a device, against the tests' own oracle: exact on integers."""

from __future__ import annotations

import random

import pytest
import torch
from device_tests import (
    DEVICE,
    DTYPES,
    REASON,
    assert_right,
    assert_same,
    check,
    count_for,
    plan_that_ran,
    run,
    weight_of,
)
from helpers import UNIT_1X1, UNIT_3X3, expected_conv, integers, random_weight

from subbit_infer import conv
from subbit_infer.core.epilogue import Epilogue

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(REASON is not None, reason=f"no CUDA kernels: {REASON}")]


def test_what_is_asked_for_is_what_runs(plan):
    for activation_bits in (32,) if plan == "sparse" else (32, 1):
        weight = weight_of(*random_weight(UNIT_3X3, 16, 16, count_for(plan)))
        conv(integers(1, 16, 9, 9).to(DEVICE), weight, activation_bits=activation_bits)
        assert plan_that_ran(weight) == {plan}


@pytest.mark.parametrize("activation_bits", [32, 1])
class TestOracle:
    @pytest.mark.parametrize("codewords", [1, 2, 3, 4, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 255, 256])
    @pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
    def test_codebook_sizes(self, plan, activation_bits, unit, codewords):
        check(plan, activation_bits, unit, 70, 40, codewords, (9, 11), padding=(1, 1))

    # Either side of a warp's and a block's outputs of either route (16, 32, 64, 128, 256).
    @pytest.mark.parametrize("out_channels", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 513])
    @pytest.mark.parametrize("codewords", [32, 256])
    def test_output_channels(self, plan, activation_bits, codewords, out_channels):
        check(plan, activation_bits, UNIT_3X3, out_channels, 5, codewords, (6, 7), padding=(1, 1))

    # Either side of a block of units (1, 2, 4), a piece (8), a step of float16 (32), a word (64) and a step of bits.
    @pytest.mark.parametrize("in_channels", [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 130, 512, 513])
    @pytest.mark.parametrize("codewords", [4, 32, 256])
    def test_input_channels(self, plan, activation_bits, in_channels, codewords):
        check(plan, activation_bits, UNIT_3X3, 9, in_channels, codewords, (5, 6), padding=(1, 1))

    # Either side of a tile of pixels (16, 64, 128, 256).
    @pytest.mark.parametrize(
        "size",
        [(1, 1), (1, 7), (7, 1), (3, 5), (7, 7), (1, 16), (1, 17), (1, 63), (2, 64), (3, 65), (1, 257), (40, 41)],
    )
    @pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
    def test_image_sizes(self, plan, activation_bits, unit, size):
        check(plan, activation_bits, unit, 40, 16, 32, size, padding=(1, 1), batch=3)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_large_tiles(self, plan, activation_bits, dtype):
        # Enough blocks that both routes take their largest tiles, floats by wgmma where the device has it.
        for unit in (UNIT_3X3, UNIT_1X1):
            check(plan, activation_bits, unit, 130, 72, 32, (57, 55), padding=(1, 1), batch=6, dtype=dtype)
        options = {"stride": (2, 1), "dilation": (1, 2), "padding": (0, 3), "groups": 2, "dtype": dtype}
        check(plan, activation_bits, UNIT_3X3, 320, 208, 256, (57, 55), batch=6, **options)

    @pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1), (1, 4), (5, 2)])
    @pytest.mark.parametrize("dilation", [(1, 1), (2, 2), (3, 1), (1, 3)])
    @pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 3), (9, 0)])
    def test_geometry(self, plan, activation_bits, stride, dilation, padding):
        options = {"stride": stride, "dilation": dilation, "padding": padding}
        check(plan, activation_bits, UNIT_3X3, 9, 6, 32, (11, 13), **options)
        check(plan, activation_bits, UNIT_1X1, 9, 16, 32, (5, 6), **options)

    @pytest.mark.parametrize("groups", [2, 3, 6])
    def test_groups(self, plan, activation_bits, groups):
        options = {"groups": groups}
        for codewords in (16, 256):
            check(plan, activation_bits, UNIT_3X3, 12, 6, codewords, (7, 8), padding=(1, 1), **options)
            check(
                plan, activation_bits, UNIT_3X3, 66 * groups, 40 * groups, codewords, (7, 8), padding=(1, 1), **options
            )
            check(
                plan, activation_bits, UNIT_3X3, 64 * groups, 64 * groups, codewords, (7, 8), padding=(1, 1), **options
            )
            check(plan, activation_bits, UNIT_1X1, 12, 48, codewords, (7, 8), **options)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
    def test_dtypes(self, plan, activation_bits, unit, dtype):
        check(plan, activation_bits, unit, 40, 24, 32, (9, 10), dtype=dtype, padding=(1, 1))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", ["channels_last", "expanded", "transposed", "sliced"])
    def test_strides(self, plan, activation_bits, dtype, layout):
        indices, codebook = random_weight(UNIT_3X3, 10, 8, count_for(plan))
        x = integers(2, 8, 9, 11).to(DEVICE, dtype)
        if layout == "channels_last":
            x = x.to(memory_format=torch.channels_last)
        elif layout == "expanded":
            x = x[:, :1].expand(2, 8, 9, 11)
        elif layout == "transposed":
            x = x.transpose(2, 3)
        else:
            x = integers(3, 20, 19, 23).to(DEVICE, dtype)[1:, 3:11, ::2, 1::2]
        y = conv(x, weight_of(indices, codebook), padding=1, activation_bits=activation_bits)
        assert y.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
        expected = expected_conv(x.cpu().float(), indices, codebook, padding=1, activation_bits=activation_bits)
        assert_right(y.cpu(), expected, plan, activation_bits)

    @pytest.mark.parametrize("sign_zero", [0, 1])
    def test_sign_of_zero(self, plan, activation_bits, sign_zero):
        options = {"sign_zero": sign_zero} if activation_bits == 1 else {}
        check(plan, activation_bits, UNIT_3X3, 9, 6, 32, (8, 9), padding=(1, 1), **options)
        check(plan, activation_bits, UNIT_3X3, 9, 6, 32, (8, 9), padding="same", dilation=3, **options)

    def test_random_problems(self, plan, activation_bits):
        rng = random.Random(f"{plan} {activation_bits}")
        for seed in range(60):
            unit = rng.choice([UNIT_3X3, UNIT_1X1])
            groups = rng.choice([1, 1, 2, 3])
            size = rng.randint(1, 20), rng.randint(1, 40)
            check(
                plan, activation_bits, unit,
                groups * rng.randint(1, 80), groups * unit[0] * rng.randint(1, 40), rng.randint(1, 256), size,
                batch=rng.randint(1, 3), groups=groups, seed=seed,
                stride=(rng.randint(1, 3), rng.randint(1, 3)), padding=(rng.randint(2, 4), rng.randint(2, 4)),
                dilation=(rng.randint(1, 2), rng.randint(1, 2)),
            )  # fmt: skip

    def test_empty_batch(self, plan, activation_bits):
        weight = weight_of(*random_weight(UNIT_3X3, 10, 12, count_for(plan)))
        y = conv(torch.empty(0, 12, 5, 6, device=DEVICE), weight, padding=1, activation_bits=activation_bits)
        assert y.shape == (0, 10, 5, 6)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("activation", ["none", "relu", "hardtanh", "prelu"])
    def test_epilogue_has_the_bits_of_the_cpu(self, plan, activation_bits, dtype, activation):
        """Each operation is rounded by itself in float32, and the result once to the dtype."""
        indices, codebook = random_weight(UNIT_3X3, 37, 12, count_for(plan))
        x = integers(2, 12, 9, 10).to(dtype)
        generator = torch.Generator().manual_seed(1)
        vectors = {name: torch.randn(37, generator=generator) for name in ("scale", "bias", "shift")}
        slope = torch.rand(37, generator=generator) if activation == "prelu" else None
        residual = torch.randn(2, 37, 9, 10, generator=generator).to(dtype)
        options = {"activation_bits": activation_bits, "padding": (1, 1)}
        sums = expected_conv(x.float(), indices, codebook, **options).float()
        expected = Epilogue(activation=activation, slope=slope, residual=residual, **vectors).apply(sums)
        y = run(x, indices, codebook, activation=activation, slope=slope, residual=residual, **vectors, **options)
        assert_right(y, expected, plan, activation_bits)


def test_a_residual_of_another_dtype_is_not_rounded(kernels):
    indices, codebook = random_weight(UNIT_3X3, 10, 8, count_for(kernels))
    x, residual = integers(1, 8, 6, 6).half(), torch.randn(1, 10, 6, 6, generator=torch.Generator().manual_seed(0))
    y = run(x, indices, codebook, padding=1, residual=residual)
    assert y.dtype == torch.float16
    assert_same(y, expected_conv(x.float(), indices, codebook, padding=1).float() + residual)


def test_more_binary_taps_than_16_bits_hold(binary_plan):
    indices, codebook = torch.zeros(3, 4096, dtype=torch.int64), torch.ones(1, 1, 3, 3)
    y = run(torch.full((1, 4096, 3, 3), 7.0), indices, codebook, activation_bits=1)
    assert y.flatten().tolist() == [36864.0] * 3
