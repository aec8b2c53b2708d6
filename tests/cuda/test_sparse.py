"""The sparse route, run on the CPU by the host shim, against the reference."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from helpers import UNIT_1X1, UNIT_3X3, GuardedFloats, integers
from product_layers import INF, NAN, Layer, call_of, empty_like_output, expected, full_epilogue, pointer, strided

from subbit_infer.core.activations import pack_signs, word_count
from subbit_infer.core.codebook import decode
from subbit_infer.core.epilogue import ACTIVATIONS

SIXTEEN_BITS = (torch.float16, torch.bfloat16)
ELEMENTS = (*SIXTEEN_BITS, torch.float32)
BY_SIZE, NARROW, MIDDLE, WIDE = 0, 64, 128, 256
TILES = (NARROW, MIDDLE, WIDE)
MOST_EXACT = {torch.float16: 2048, torch.bfloat16: 256}
ROUNDING = {torch.float16: (2.0**-11, 2.0**-25), torch.bfloat16: (2.0**-8, 2.0**-134)}


def layer_of(channels: int, outputs: int, codewords: int, **options: Any) -> Layer:
    """A 3x3 layer; by default on a small image with padding 1."""
    size = options.pop("size", (5, 6))
    batch, groups = options.pop("batch", 1), options.get("groups", 1)
    options.setdefault("padding", (1, 1))
    return Layer(UNIT_3X3, (batch, channels * groups, *size), outputs * groups, codewords=codewords, **options)


LAYERS = {
    "one channel": layer_of(1, 3, 4),
    "one codeword": layer_of(9, 5, 1),
    "two": layer_of(20, 33, 2),
    "three": layer_of(33, 40, 3, size=(7, 7)),
    "four": layer_of(64, 70, 4, size=(7, 7), batch=2),
    "five": layer_of(17, 17, 5),
    "eight": layer_of(40, 66, 8, size=(9, 5)),
    "strided": layer_of(24, 12, 4, size=(9, 11), stride=(2, 2)),
    "strided eight": layer_of(24, 12, 7, size=(9, 11), stride=(1, 2), padding=(0, 2)),
    "each for itself": layer_of(20, 12, 4, size=(9, 14), stride=(2, 3), padding=(3, 2)),
    "each for itself eight": layer_of(20, 12, 8, size=(9, 14), stride=(1, 1), dilation=(1, 2)),
    "dilated": layer_of(10, 12, 4, size=(9, 14), stride=(3, 2), dilation=(2, 2), padding=(2, 3)),
    "groups": layer_of(8, 10, 4, groups=2, batch=2),
    "odd groups": layer_of(5, 3, 8, groups=3),
    "wide groups": layer_of(16, 64, 4, groups=2),
    "depthwise": layer_of(1, 2, 3, groups=5),
    "mostly padding": layer_of(9, 5, 4, size=(1, 2), padding=(3, 2), dilation=(2, 2)),
    "long": layer_of(130, 9, 4, size=(3, 3)),
}  # fmt: skip


def integral(layer: Layer, element: torch.dtype) -> torch.Tensor:
    """Integers whose responses are exact in 16 bits."""
    x = integers(*layer.shape)
    assert 9 * x.abs().max() <= 256
    return x.to(element)


def run(
    sparse_shim: ctypes.CDLL,
    layer: Layer,
    x: torch.Tensor,
    *,
    tile: int = BY_SIZE,
    out: str = "contiguous",
    **options: Any,
) -> torch.Tensor:
    """The route's float result, with nothing around it written."""
    memory, y = empty_like_output(layer, x.dtype, out)
    call, _alive = call_of(layer, x, y, element=x.dtype, tile=tile, **options)
    assert sparse_shim.sparse_call(ctypes.byref(call)) == 0, sparse_shim.sparse_error()
    size = y.numel()
    assert (memory[:32] == 77).all()
    assert (memory[32 + size :] == 77).all()
    return y


class Plan(NamedTuple):
    outputs: int
    images: int
    rows: int
    pairs: int
    span: int
    tile_rows: int
    tile_columns: int
    shared_bytes: int
    boxes: int


def plan_of(sparse_shim: ctypes.CDLL, layer: Layer, element: torch.dtype = torch.float16, tile: int = BY_SIZE) -> Plan:
    call, _alive = call_of(layer, torch.empty(0, 0, 0, 0), element=element, tile=tile)
    numbers = (ctypes.c_int64 * 9)()
    sparse_shim.sparse_plan(ctypes.byref(call), numbers)
    return Plan(*numbers)


def tiles_for(element: torch.dtype) -> tuple[int, ...]:
    return TILES[:2] if element == torch.float32 else TILES


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("is_bfloat16", [0, 1])
def test_the_emulated_sparse_product_is_a_matrix_product(sparse_shim, is_bfloat16, selector):
    dtype = torch.bfloat16 if is_bfloat16 else torch.float16
    generator = torch.Generator().manual_seed(selector)
    a, b, d = integers(16, 32, seed=1) + 0.5, integers(32, 8, seed=2), integers(16, 8, seed=3)
    for kept in (0, 1, 2):  # numbers of a group of four
        order = torch.rand(16, 8, 4, generator=generator).argsort(2).argsort(2)
        sparse = (a.view(16, 8, 4) * (order < kept)).view(16, 32).to(dtype).contiguous()
        by_columns, sums, expected_sums = b.t().to(dtype).contiguous(), d.clone(), d + sparse.float() @ b
        pointers = (ctypes.c_void_p(pointer(t)) for t in (sparse, by_columns, sums))
        sparse_shim.mma_sparse_float16(*pointers, is_bfloat16, selector)
        assert torch.equal(sums, expected_sums)


def test_the_emulated_load_transposes_matrices(sparse_shim):
    matrices = torch.arange(256, dtype=torch.int16).view(4, 8, 8)
    registers = torch.zeros(32, 4, 2, dtype=torch.int16)
    sparse_shim.load_matrices(*(ctypes.c_void_p(pointer(t)) for t in (matrices, registers)))
    lanes = registers.view(8, 4, 4, 2)  # g, t, matrix, number: column g, row 2 t + number
    assert torch.equal(lanes.permute(2, 1, 3, 0).reshape(4, 8, 8), matrices)


@pytest.mark.parametrize("span", [3, 4, 5])
@pytest.mark.parametrize("pieces", [2, 4])
def test_a_matrix_of_positions_is_read_without_bank_conflicts(sparse_shim, span, pieces):
    for columns in range(span, span + 20):
        banks = (ctypes.c_int * 8)()
        sparse_shim.sparse_banks(columns, span, pieces, banks)
        assert sorted(banks) == list(range(0, 128, 16))


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("name", LAYERS)
def test_integers_are_exact(sparse_shim, name, element):
    layer = LAYERS[name]
    x = integral(layer, element)
    y = expected(layer, x).to(element)
    for layout in ("contiguous", "gaps"):
        assert torch.equal(run(sparse_shim, layer, strided(x, layout), tile=NARROW), y), layout
    last = strided(x, "channels_last")
    for tile in tiles_for(element) if element != torch.bfloat16 else (WIDE,):
        assert torch.equal(run(sparse_shim, layer, last, tile=tile, out="channels_last"), y)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("channels", [1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65])
def test_channels(sparse_shim, channels, element):
    for codewords in (4, 8):
        layer = layer_of(channels, 9, codewords, size=(4, 4))
        x = integral(layer, element)
        assert torch.equal(run(sparse_shim, layer, x), expected(layer, x).to(element))


@pytest.mark.parametrize("outputs", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257])
def test_outputs(sparse_shim, outputs):
    for codewords in (4, 8):
        layer = layer_of(8, outputs, codewords, size=(3, 3))
        x = integral(layer, torch.float16)
        y = expected(layer, x).half()
        for tile in TILES if outputs > NARROW else TILES[:1]:
            assert torch.equal(run(sparse_shim, layer, x, tile=tile), y)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 31), (8, 8), (9, 9), (14, 14), (1, 65), (17, 3), (5, 64)])
@pytest.mark.parametrize("batch", [1, 3])
def test_image_sizes(sparse_shim, size, batch):
    for codewords in (3, 6):
        layer = layer_of(8, 4, codewords, size=size, batch=batch)
        x = integral(layer, torch.float16)
        assert torch.equal(run(sparse_shim, layer, x), expected(layer, x).half())


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 3), (2, 1), (1, 3)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 3)])
def test_geometry(sparse_shim, stride, dilation, padding):
    for codewords in (4, 8):
        layer = layer_of(6, 5, codewords, size=(9, 11), stride=stride, padding=padding, dilation=dilation)
        x = integral(layer, torch.float16)
        assert torch.equal(run(sparse_shim, layer, x), expected(layer, x).half())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue_and_packed_results(sparse_shim, activation):
    element = (*ELEMENTS, torch.float16)[ACTIVATIONS.index(activation)]
    for name in ("three", "wide groups", "eight"):
        layer = LAYERS[name]
        epilogue = full_epilogue(layer, element, activation)
        pack_shift = integers(layer.out_channels, seed=5) / 8
        x = integral(layer, element)
        v = expected(layer, x, epilogue)
        n, c, h, w = layer.sizes()
        for tile, sign_zero, has_y in ((NARROW, 0, True), (MIDDLE, 1, False), (tiles_for(element)[-1], 0, True)):
            plus = torch.full((n, h, w, word_count(c)), 77)
            nonzero = None if sign_zero else plus.clone()
            memory, y = empty_like_output(layer, element, "contiguous")
            call, _alive = call_of(
                layer, x, y if has_y else None, (plus, nonzero), element=element, tile=tile, pack_shift=pack_shift,
                epilogue=epilogue,
            )  # fmt: skip
            assert sparse_shim.sparse_call(ctypes.byref(call)) == 0, sparse_shim.sparse_error()
            expected_plus, expected_nonzero = pack_signs(v, pack_shift, sign_zero)
            assert torch.equal(plus, expected_plus)
            assert nonzero is None or torch.equal(nonzero, expected_nonzero)
            assert torch.equal(y, v.to(element)) if has_y else (memory == 77).all()


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("codewords", [4, 8])
def test_nan_and_infinity_reach_what_sees_them(sparse_shim, codewords, element):
    for stride in (1, 3):
        layer = layer_of(9, 6, codewords, size=(7, 7), stride=(stride, stride))
        x = integral(layer, element)
        x[0, 3, 1, 1] = NAN
        x[0, 2, 4, 4] = INF
        x[0, 8, 5, 4] = -INF
        weight = decode(layer.indices, layer.codebook).double()
        sums = F.conv2d(x.double(), weight, None, *layer.geometry).to(element)
        for tile in tiles_for(element):
            y = run(sparse_shim, layer, x, tile=tile)
            assert torch.equal(y.nan_to_num(5.5, 1e4, -1e4), sums.nan_to_num(5.5, 1e4, -1e4))


def test_responses_that_overflow_are_no_infinite_sums(sparse_shim):
    """Two channels whose responses cancel: each of them is beyond float16."""
    layer = layer_of(2, 3, 4, size=(4, 4))
    layer.indices[:, 1] = layer.indices[:, 0]
    x = torch.full(layer.shape, 16000.0, dtype=torch.float16)
    x[:, 1] = -16000 + integers(1, 4, 4) * 64
    layer.codebook[:] = 1
    y = expected(layer, x)
    assert (F.conv2d(x[:, :1].float(), torch.ones(1, 1, 3, 3), padding=1).abs() > 65504).any()
    assert y.abs().max() < 60000
    assert torch.equal(run(sparse_shim, layer, x), y.half())


@pytest.mark.parametrize("name", ["three", "four", "eight", "long", "each for itself"])
@pytest.mark.parametrize("element", SIXTEEN_BITS)
def test_16_bits_are_within_their_bound(sparse_shim, name, element):
    """Of sparse/kernel.cuh: each response is rounded once; and the float32 sums, before the result is rounded."""
    layer = LAYERS[name]
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(layer.shape, generator=generator) * 2.0 ** torch.randint(-9, 9, (1,), generator=generator)).to(
        element
    )
    weight = decode(layer.indices, layer.codebook).double()
    exact = F.conv2d(x.double(), weight, None, *layer.geometry)
    responses = responses_of(layer, x).abs()
    relative, least = ROUNDING[element]
    sums = (30 + 2 * layer.shape[1]) * 2.0**-23 * F.conv2d(x.double().abs(), weight.abs(), None, *layer.geometry)
    bound = relative * responses.sum(2) + layer.shape[1] * least + sums
    allowed = bound + (exact.abs() + bound) * relative + least  # the result's own rounding
    for tile in TILES:
        error = (run(sparse_shim, layer, x, tile=tile).double() - exact).abs()
        assert (error <= allowed).all()
    assert error.max() > 0


def responses_of(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """(N, C_out, C, H, W): what each output takes of each channel; of one group."""
    weight = decode(layer.indices, layer.codebook).double()
    each = [
        F.conv2d(x[:, c : c + 1].double(), weight[:, c : c + 1], None, *layer.geometry[:3]) for c in range(x.shape[1])
    ]
    return torch.stack(each, 2)


@pytest.mark.parametrize("name", ["three", "four", "eight", "long", "each for itself"])
def test_float32_is_within_its_bound(sparse_shim, name):
    layer = LAYERS[name]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(layer.shape, generator=generator) * 2.0 ** torch.randint(-9, 9, layer.shape, generator=generator)
    weight = decode(layer.indices, layer.codebook).double()
    exact = F.conv2d(x.double(), weight, None, *layer.geometry)
    size = F.conv2d(x.double().abs(), weight.abs(), None, *layer.geometry)
    steps = -(-layer.shape[1] // (8 if layer.codewords <= 4 else 4))
    bound = (30 + 1.02 * (layer.shape[1] + steps)) * 2.0**-23 * size
    for tile in tiles_for(torch.float32):
        error = (run(sparse_shim, layer, x, tile=tile).double() - exact).abs()
        assert (error <= bound).all()
        assert (error <= 6e-7 * size).all()  # and what it really is here


def test_results_do_not_depend_on_the_tile(sparse_shim):
    for name, element in (("three", torch.float16), ("eight", torch.bfloat16), ("four", torch.float32)):
        layer = LAYERS[name]
        x = torch.randn(layer.shape, generator=torch.Generator().manual_seed(2)).to(element)
        first, *others = (run(sparse_shim, layer, x, tile=tile) for tile in tiles_for(element))
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("at_end", [False, True])
def test_nothing_outside_of_x_is_read(sparse_shim, at_end):
    for codewords in (4, 8):
        layer = layer_of(40, 5, codewords, size=(5, 3), batch=2, stride=(2, 1))
        n, c, h, w = layer.shape
        floats = GuardedFloats(n, c, h, w, at_end=at_end).tensor.copy_(integers(*layer.shape))
        numbers = GuardedFloats(n, h, w, c // 2, at_end=at_end).tensor.view(torch.float16).permute(0, 3, 1, 2)
        numbers.copy_(floats)
        assert torch.equal(run(sparse_shim, layer, floats), expected(layer, floats))
        assert torch.equal(run(sparse_shim, layer, numbers).float(), expected(layer, floats))


def test_what_it_has_no_kernel_for_is_refused(sparse_shim):
    x = torch.zeros(1, 8, 9, 9)
    cases = (
        (layer_of(8, 4, 9, size=(9, 9)), {}),
        (layer_of(8, 4, 4, size=(9, 9)), {"binary": True}),
        (Layer(UNIT_1X1, (1, 8, 9, 9), 4, codewords=4), {}),
        (layer_of(8, 4, 4, size=(9, 9), stride=(1, 99), padding=(20, 99), dilation=(20, 60)), {}),
    )
    for layer, options in cases:
        y = torch.zeros(layer.sizes())
        call, _alive = call_of(layer, x, y, **options)
        assert sparse_shim.sparse_call(ctypes.byref(call)) == 1


def test_packed_results_of_groups_that_share_words_are_refused(sparse_shim):
    layer = LAYERS["groups"]
    n, c, h, w = layer.sizes()
    plus = torch.zeros(n, h, w, word_count(c), dtype=torch.int64)
    call, _alive = call_of(layer, integers(*layer.shape), None, (plus, None))
    assert sparse_shim.sparse_call(ctypes.byref(call)) == 1


@pytest.mark.parametrize(
    ("side", "batch", "used"),
    [(7, 256, 0.76), (14, 256, 0.87), (28, 256, 0.87), (56, 256, 1.0), (9, 64, 0.7), (13, 64, 0.75)],
)
def test_boxes_are_well_filled(sparse_shim, side, batch, used):
    for codewords in (4, 8):
        plan = plan_of(sparse_shim, layer_of(64, 64, codewords, size=(side, side), batch=batch))
        assert batch * side * side / (plan.boxes * 64) >= used
        assert plan.images * plan.rows * plan.pairs * 2 <= 64


def test_the_tile_of_x_is_what_the_box_sees(sparse_shim):
    layer = layer_of(32, 64, 4, size=(56, 56), batch=64)
    plan = plan_of(sparse_shim, layer)
    assert (plan.images, plan.tile_rows, plan.tile_columns) == (1, plan.rows + 2, 2 * plan.pairs + 2)
    strided_plan = plan_of(sparse_shim, layer_of(32, 64, 4, size=(56, 56), batch=64, stride=(2, 2), dilation=(3, 1)))
    rows, columns = strided_plan.rows, 2 * strided_plan.pairs
    assert (strided_plan.tile_rows, strided_plan.tile_columns) == (2 * rows + 5, 2 * columns + 1)


@pytest.mark.parametrize(
    ("stride", "dilation", "span"), [(1, 1, 4), (2, 1, 5), (3, 1, 3), (1, 2, 3), (2, 2, 4), (4, 2, 5), (3, 3, 4)]
)
def test_pairs_share_what_they_see_where_it_fits_a_product(sparse_shim, stride, dilation, span):
    layer = layer_of(8, 8, 4, size=(30, 30), stride=(1, stride), dilation=(1, dilation))
    assert plan_of(sparse_shim, layer).span == span


def test_every_box_fits_the_memory_of_a_block(sparse_shim):
    for element in ELEMENTS:
        for codewords in (4, 8):
            for tile in tiles_for(element):
                for side, stride, dilation in ((56, 1, 1), (7, 1, 1), (40, 2, 1), (40, 3, 2), (90, 5, 4)):
                    layer = layer_of(
                        64, 64, codewords, size=(side, side), batch=32, stride=(stride, stride),
                        dilation=(dilation, dilation), padding=(dilation, dilation),
                    )  # fmt: skip
                    plan = plan_of(sparse_shim, layer, element, tile)
                    assert plan.images >= 1
                    assert plan.shared_bytes <= 99 * 1024


def test_the_tile_follows_from_sizes(sparse_shim):
    for outputs, side, element, tile in (
        (64, 56, torch.float16, NARROW),
        (65, 56, torch.float16, MIDDLE),
        (129, 56, torch.float16, WIDE),
        (129, 56, torch.float32, MIDDLE),
        (512, 7, torch.float16, NARROW),
    ):
        layer = layer_of(1, outputs, 4, size=(side, side), batch=256 if side > 7 else 1)
        assert plan_of(sparse_shim, layer, element).outputs == tile
