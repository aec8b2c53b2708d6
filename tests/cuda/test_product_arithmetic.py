"""What the product is made of: the host shim's matrix instructions, and float32 as three bfloat16 parts."""

from __future__ import annotations

import ctypes

import pytest
import torch
import torch.nn.functional as F
from helpers import integers
from product_layers import INF, LARGE, LAYERS, NAN, SMALL, WGMMA, run

from subbit_infer.core.codebook import decode


@pytest.mark.parametrize("is_bfloat16", [0, 1])
def test_the_emulated_product_of_float16_is_a_matrix_product(product_shim, is_bfloat16):
    dtype = torch.bfloat16 if is_bfloat16 else torch.float16
    a, b = integers(16, 16, seed=1).to(dtype), integers(16, 8, seed=2).to(dtype)
    d = integers(16, 8, seed=3)
    by_columns, product = b.t().contiguous(), d + a.float() @ b.float()
    product_shim.mma_float16(*map(ctypes.c_void_p, (a.data_ptr(), by_columns.data_ptr(), d.data_ptr())), is_bfloat16)
    assert torch.equal(d, product)


def test_the_emulated_product_of_bits_counts_common_ones(product_shim):
    a, b = (integers(*shape, seed=i) > 0 for i, shape in enumerate(((16, 256), (256, 8))))
    d = integers(16, 8, seed=3).to(torch.int32)
    by_columns, product = b.t().contiguous(), d + (a.int() @ b.int())
    product_shim.mma_bits(*map(ctypes.c_void_p, (a.data_ptr(), by_columns.data_ptr(), d.data_ptr())))
    assert torch.equal(d, product)


def multiply_by_wgmma(
    product_shim: ctypes.CDLL, columns: int, is_bfloat16: int, piece: int, without: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the emulated instruction makes of 16 of 64 numbers along K, and the product."""
    dtype = torch.bfloat16 if is_bfloat16 else torch.float16
    a, rows = integers(64, 16, seed=1).to(dtype), integers(columns, 64, seed=2).to(dtype)
    d = integers(64, columns, seed=3)
    product = d + a.float() @ rows[:, 16 * piece : 16 * (piece + 1)].t().float()
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, rows, d))
    assert product_shim.wgmma_float16(*pointers, columns, is_bfloat16, piece, without) == 0, (
        product_shim.product_error()
    )
    return d, product


@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize("is_bfloat16", [0, 1])
def test_the_emulated_product_of_a_warpgroup_is_a_matrix_product(product_shim, is_bfloat16, columns):
    for piece in range(4):
        assert torch.equal(*multiply_by_wgmma(product_shim, columns, is_bfloat16, piece))


def test_the_emulated_product_of_a_warpgroup_is_there_when_it_is_waited_for(product_shim):
    assert not torch.equal(*multiply_by_wgmma(product_shim, 64, 0, 0, without=1))


@pytest.mark.parametrize(
    ("without", "said"),
    [
        (2, "not fenced"),
        (3, "not fenced|by no barrier"),
        (4, "no fence came after"),
        (5, "overwrites"),
        (6, "different matrices"),
    ],
)
def test_the_emulated_product_of_a_warpgroup_sees_what_numbers_do_not_show(product_shim, without, said):
    with pytest.raises(AssertionError, match=said):
        multiply_by_wgmma(product_shim, 64, 0, 0, without)


def test_the_emulated_product_of_bytes_is_a_matrix_product(product_shim):
    a, b = (integers(*shape, seed=i).mul(-18).to(torch.int8) for i, shape in enumerate(((16, 32), (32, 8))))
    d = integers(16, 8, seed=3).to(torch.int32)
    by_columns, product = b.t().contiguous(), d + (a.int() @ b.int())
    product_shim.mma_bytes(*map(ctypes.c_void_p, (a.data_ptr(), by_columns.data_ptr(), d.data_ptr())))
    assert torch.equal(d, product)


def split(product_shim: ctypes.CDLL, x: torch.Tensor) -> torch.Tensor:
    parts = torch.empty(3, *x.shape)
    product_shim.split_call(ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(x.numel()), ctypes.c_void_p(parts.data_ptr()))
    return parts


def test_three_bfloat16_parts_are_exactly_a_float32(product_shim):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31 - 1, (1 << 16,), generator=generator).to(torch.int32).view(torch.float32)
    x = x[x.isfinite() & (x.abs() >= 2.0**-109)]
    low, middle, high = split(product_shim, x)
    assert torch.equal(low.double() + middle.double() + high.double(), x.double())
    assert (middle.abs() <= x.abs() * 2.0**-7).all()
    assert (low.abs() <= x.abs() * 2.0**-15).all()


def test_parts_of_special_and_of_tiny_numbers(product_shim):
    special = torch.tensor([NAN, INF, -INF, 0.0, -0.0, torch.finfo(torch.float32).max])
    special = torch.cat([special, torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)])
    total = split(product_shim, special).double().sum(0)
    assert torch.equal(total.nan_to_num(7, 8, 9), special.double().nan_to_num(7, 8, 9))
    tiny = torch.tensor([1e-45, -3e-40, 2.0**-126, 1.2345e-35])
    assert ((split(product_shim, tiny).double().sum(0) - tiny.double()).abs() < 2.0**-133).all()


@pytest.mark.parametrize("name", ["a whole step", "long", "1x1"])
def test_float32_is_within_its_bound(product_shim, name):
    """The bound of product/kernel.cuh, with the stages and the numbers of a stage that each tile has."""
    layer = LAYERS[name]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(layer.shape, generator=generator) * 2.0 ** torch.randint(-9, 9, layer.shape, generator=generator)
    weight = decode(layer.indices, layer.codebook).double()
    geometry = layer.stride, layer.padding, layer.dilation, layer.groups
    exact = F.conv2d(x.double(), weight, None, *geometry)
    size = F.conv2d(x.double().abs(), weight.abs(), None, *geometry)
    steps = -(-layer.shape[1] // 32) * layer.unit[1] ** 2
    for tile, numbers, stages in (
        (LARGE, 64, -(-steps // 2)),
        (SMALL, 32, -(-steps // 4) + 3),
        (WGMMA, 64, -(-steps // 2)),
    ):
        y = run(product_shim, layer, x, tile=tile)
        bound = 1.02 * (numbers + 1) * 2.0**-23 + stages * 2.0**-24
        assert ((y.double() - exact).abs() <= bound * size).all()
        assert ((y.double() - exact).abs() <= 4e-7 * size).all()  # and what it really is here
