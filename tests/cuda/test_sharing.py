"""The sharing kernel's body, run on the CPU by the host shim, against the reference."""

from __future__ import annotations

import mmap
from dataclasses import replace

import pytest
import torch
from helpers import UNIT_1X1, UNIT_3X3, integers
from sharing_problems import DTYPES, LARGE, ROOMY, SMALL, Call, check, everything, packed, problem, vector
from torch import Tensor

from subbit_infer.core.epilogue import ACTIVATIONS, Epilogue


# Codewords on both sides of powers of two, and each tau.
@pytest.mark.parametrize("codewords", [1, 2, 3, 4, 5, 8, 9, 16, 31, 33, 64, 100, 128, 129, 256])
@pytest.mark.parametrize(("unit", "channels"), [(UNIT_3X3, 5), (UNIT_1X1, 40)])
@pytest.mark.parametrize("activation_bits", [32, 1])
def test_codewords(sharing_shim, unit, channels, codewords, activation_bits):
    padding = (1, 1) if unit == UNIT_3X3 else (0, 0)
    check(sharing_shim, problem(unit, channels, 20, codewords, activation_bits=activation_bits, padding=padding))


@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("codewords", [1, 6, 32, 200])
@pytest.mark.parametrize(("unit", "channels"), [(UNIT_3X3, 7), (UNIT_1X1, 56)])
@pytest.mark.parametrize("limits", [LARGE, SMALL, ROOMY], ids=["large", "small", "roomy"])
def test_every_tile(sharing_shim, unit, channels, codewords, activation_bits, limits):
    # 273 outputs and 198 pixels: several blocks of each in the smallest tiles, and odd ends.
    p = problem(unit, channels, 273, codewords, (2, 11, 9), activation_bits=activation_bits, padding=(1, 1))
    check(sharing_shim, p if unit == UNIT_3X3 else replace(p, padding=(0, 0)), limits=limits, every_tile=True)


def test_tiles_have_one_buffer_where_two_do_not_fit(sharing_shim):
    p = problem(UNIT_3X3, 3, 40, 256, (1, 6, 6), padding=(1, 1))
    tiles, _ = Call(p, SMALL).tiles(sharing_shim)
    assert {t.buffers for t in tiles} == {1}
    assert all(t.shared_bytes <= SMALL[1] for t in tiles)
    check(sharing_shim, p, limits=SMALL, every_tile=True)


@pytest.mark.parametrize("in_channels", [1, 2, 3, 4, 5, 8, 9, 12, 33])
@pytest.mark.parametrize("codewords", [2, 5, 100, 256])
def test_units_that_end_within_a_block_of_units(sharing_shim, in_channels, codewords):
    check(sharing_shim, problem(UNIT_3X3, in_channels, 17, codewords, padding=(1, 1)))


GEOMETRIES = [
    {"stride": (2, 1), "padding": (1, 0)},
    {"stride": (1, 3), "dilation": (2, 1)},
    {"dilation": (1, 3), "padding": (2, 4)},
    {"padding": (5, 6)},
    {"stride": (4, 4), "padding": (1, 1), "dilation": (3, 2)},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("groups", [1, 3])
def test_geometry_of_3x3(sharing_shim, geometry, activation_bits, groups):
    check(
        sharing_shim,
        problem(UNIT_3X3, 6, 33, 20, (2, 9, 8), groups=groups, activation_bits=activation_bits, **geometry),
    )


@pytest.mark.parametrize(
    "geometry", [{"stride": (2, 3)}, {"padding": (1, 2)}, {"stride": (2, 2), "padding": (3, 0)}], ids=str
)
@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("groups", [1, 2])
def test_geometry_of_1x1(sharing_shim, geometry, activation_bits, groups):
    check(
        sharing_shim,
        problem(UNIT_1X1, 48, 34, 20, (2, 9, 8), groups=groups, activation_bits=activation_bits, **geometry),
    )


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 300), (3, 7, 7), (300, 1, 1), (1, 17, 31)])
@pytest.mark.parametrize("out_channels", [1, 15, 16, 17, 64, 257, 600])
def test_sizes(sharing_shim, size, out_channels):
    check(sharing_shim, problem(UNIT_3X3, 2, out_channels, 9, size, padding=(1, 1)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("activation_bits", [32, 1])
def test_epilogue_and_outputs_of_every_dtype(sharing_shim, dtype, unit, activation, activation_bits):
    p = problem(unit, 16, 70, 32, (2, 4, 5), dtype=dtype, activation_bits=activation_bits)
    check(sharing_shim, everything(p, activation))


@pytest.mark.parametrize("groups", [1, 2, 5])
@pytest.mark.parametrize("group_outputs", [8, 16, 48, 64, 67])
@pytest.mark.parametrize("pack_sign_zero", [0, 1])
@pytest.mark.parametrize("float_output", [True, False])
def test_packed_output(sharing_shim, groups, group_outputs, pack_sign_zero, float_output):
    """Groups begin anywhere in a word; small integer sums leave many zeros."""
    x = integers(2, 2 * groups, 5, 7).clamp(-1, 1)
    p = problem(UNIT_3X3, 2 * groups, group_outputs * groups, 9, x=x, groups=groups, padding=(1, 1))
    p = replace(p, pack_sign_zero=pack_sign_zero, float_output=float_output)
    check(sharing_shim, p, every_tile=group_outputs == 67)


@pytest.mark.parametrize("sign_zero", [0, 1])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("unit", "channels"), [(UNIT_3X3, 70), (UNIT_1X1, 80), (UNIT_3X3, 130)])
def test_packed_input(sharing_shim, sign_zero, groups, unit, channels):
    x = packed(integers(2, channels, 5, 6).clamp(-2, 2), sign_zero)
    p = problem(unit, channels, 20, 32, x=x, groups=groups, activation_bits=1)
    check(sharing_shim, p if unit == UNIT_1X1 else replace(p, padding=(1, 1), stride=(2, 1)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign_zero", [0, 1])
def test_signs_of_zeros_and_padding(sharing_shim, dtype, sign_zero):
    x = integers(1, 6, 7, 9).clamp(-1, 1).to(dtype)
    x[0, 0, 0] = -0.0
    check(
        sharing_shim,
        problem(UNIT_3X3, 6, 10, 16, x=x, dtype=dtype, activation_bits=1, sign_zero=sign_zero, padding=(2, 2)),
    )


def spread(x: Tensor) -> Tensor:
    """The same values with gaps in every dimension."""
    n, c, h, w = x.shape
    wide = torch.full((n, 2 * c, h + 1, 3 * w), torch.nan, dtype=x.dtype)
    wide[:, ::2, 1:, 1::3] = x
    return wide[:, ::2, 1:, 1::3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("form", ["channels_last", "spread", "expanded"])
@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
def test_strides(sharing_shim, dtype, activation_bits, form, unit):
    p = problem(unit, 16, 20, 12, (2, 5, 6), dtype=dtype, activation_bits=activation_bits)
    p = everything(p, "prelu")
    residual = p.epilogue.residual.expand(p.sizes)
    x = p.x
    if form == "channels_last":
        x, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))
    elif form == "spread":
        x, residual = spread(x), spread(residual)
    else:
        x, residual = x[:, :1].expand(-1, 16, -1, -1), residual[:1].expand(p.sizes)
    check(sharing_shim, replace(p, x=x, epilogue=replace(p.epilogue, residual=residual), channels_last_output=True))


def far_apart(*shape: int) -> Tensor:
    """A float16 tensor whose images and channels are more than 2^31 elements apart, in memory that is not all there."""
    strides = (shape[1] * (2**31 + 8), 2**31 + 8, shape[3], 1)
    elements = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
    no_reserve = 0x4000  # MAP_NORESERVE of Linux, which Python does not name
    memory = mmap.mmap(-1, 2 * elements, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    return torch.frombuffer(memory, dtype=torch.float16, count=elements).as_strided(shape, strides)


@pytest.mark.parametrize("activation_bits", [32, 1])
def test_offsets_beyond_2_to_the_31(sharing_shim, activation_bits):
    x, y, residual = far_apart(2, 2, 4, 5), far_apart(2, 3, 4, 5), far_apart(2, 3, 4, 5)
    x.copy_(integers(*x.shape))
    residual.copy_(integers(*y.shape, seed=1))
    p = problem(UNIT_3X3, 2, 3, 9, x=x, dtype=torch.float16, activation_bits=activation_bits, padding=(1, 1))
    check(sharing_shim, replace(p, y=y, epilogue=Epilogue(residual=residual)))


@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("units", [3639, 3640, 3641, 7000])
def test_more_units_than_16_bits_hold(sharing_shim, activation_bits, units):
    """All signs agree somewhere, so that sums reach 9 a unit; beyond 3640 units they run as floats."""
    x = torch.ones(1, units, 3, 3)
    x[..., 2] = -1
    p = problem(UNIT_3X3, units, 2, 1, x=x, activation_bits=activation_bits, padding=(1, 1))
    for sign in (1, -1):
        p = replace(p, codebook=torch.full((1, 1, 3, 3), float(sign)))
        tiles, planned = Call(p, LARGE).tiles(sharing_shim)
        assert tiles[planned].two_per_word == (activation_bits == 1 and units <= 3640)
        check(sharing_shim, p)


@pytest.mark.parametrize("codewords", [3, 32, 256])
@pytest.mark.parametrize(("unit", "channels"), [(UNIT_3X3, 37), (UNIT_1X1, 72)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("every_part", [False, True])
def test_floats_have_the_bits_of_the_cpu_kernel(sharing_shim, codewords, unit, channels, dtype, every_part):
    x = torch.randn(2, channels, 6, 7, generator=torch.Generator().manual_seed(7)).to(dtype)
    p = problem(unit, channels, 40, codewords, x=x, dtype=dtype)
    p = everything(p, "prelu") if every_part else p
    tiles, _ = Call(p, LARGE).tiles(sharing_shim)
    expected = p.by_cpu_rows()
    for i in {t.words_per_lane: i for i, t in enumerate(tiles)}.values():
        call = Call(p, LARGE)
        call.run(sharing_shim, i)
        assert torch.equal(call.y.view(torch.uint8), expected.to(dtype).view(torch.uint8)), tiles[i]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_finite(sharing_shim, value, dtype, unit, activation):
    """It reaches its receptive field and nothing else, and packs as torch has it."""
    x = integers(1, 8, 6, 7).to(dtype)
    x[0, 3, 2, 4] = value
    p = problem(unit, 8, 12, 16, x=x, dtype=dtype)
    epilogue = Epilogue(activation=activation, slope=vector(12, 1) if activation == "prelu" else None)
    check(sharing_shim, replace(p, epilogue=epilogue, pack_sign_zero=0))


def test_not_a_number_has_no_sign(sharing_shim):
    x = integers(1, 8, 6, 7)
    x[0, 3, 2, 4] = torch.nan
    check(sharing_shim, problem(UNIT_3X3, 8, 12, 16, x=x, activation_bits=1))


def test_half_overflows_to_infinity(sharing_shim):
    x = torch.full((1, 8, 3, 3), 60000.0, dtype=torch.float16)
    check(sharing_shim, problem(UNIT_3X3, 8, 12, 16, x=x, dtype=torch.float16))


def test_codewords_that_are_the_same(sharing_shim):
    p = problem(UNIT_3X3, 5, 12, 6, padding=(1, 1))
    check(sharing_shim, replace(p, codebook=p.codebook[torch.tensor([0, 1, 1, 0, 4, 4])]))


@pytest.mark.parametrize(
    ("channels", "size", "expected"),
    [(64, 56, (4, 4, 1)), (128, 28, (4, 8, 1)), (256, 14, (4, 16, 1)), (512, 7, (2, 8, 2))],
)
def test_planned_tiles_of_resnet_18(sharing_shim, channels, size, expected):
    """At batch 256 and tau 5, on 132 multiprocessors: what arithmetic expects (csrc/cuda/sharing/tile.cpp)."""
    x = torch.zeros(1).expand(256, channels, size, size)  # without memory of its own
    p = problem(UNIT_3X3, channels, channels, 32, x=x, padding=(1, 1), float_output=False)
    tiles, planned = Call(p, LARGE).tiles(sharing_shim)
    tile = tiles[planned]
    assert (tile.words_per_lane, tile.warps, tile.parts) == expected
    assert tile.buffers == 2
    assert tile.shared_bytes <= LARGE[1]
    assert tile.pixel_tiles == -(-256 * size * size // (32 * tile.words_per_lane))


@pytest.mark.parametrize("limits", [LARGE, SMALL, (108, 166912, 167936)], ids=["9.0", "8.6", "8.0"])
@pytest.mark.parametrize("codewords", [2, 31, 64, 129, 256])
@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
def test_tiles_fit_and_cover_the_outputs(sharing_shim, limits, codewords, activation_bits, unit):
    for outputs in (1, 16, 33, 100, 256, 257, 1000):
        p = problem(unit, 64, outputs, codewords, activation_bits=activation_bits, float_output=False)
        tiles, planned = Call(p, limits).tiles(sharing_shim)
        assert 0 <= planned < len(tiles)
        for t in tiles:
            of_block = t.warps * 64 // t.words_per_lane
            assert t.shared_bytes <= limits[1]
            assert (t.parts - 1) * of_block < outputs <= t.parts * of_block
            assert 1 <= t.warps <= 16
            assert t.two_per_word == (activation_bits == 1)


def test_small_problems_spread_over_the_device(sharing_shim):
    p = problem(UNIT_3X3, 512, 512, 32, (1, 7, 7), padding=(1, 1), float_output=False)
    tiles, planned = Call(p, LARGE).tiles(sharing_shim)
    assert tiles[planned].parts * tiles[planned].pixel_tiles >= 4
