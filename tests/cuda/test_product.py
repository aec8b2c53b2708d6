"""The tensor cores' route, run on the CPU by the host shim, against the reference."""

from __future__ import annotations

import ctypes

import pytest
import torch
import torch.nn.functional as F
from helpers import UNIT_1X1, UNIT_3X3, GuardedFloats, integers, signs
from product_layers import (
    A100,
    B200,
    BITS,
    BYTES,
    ELEMENTS,
    FLOATS,
    H100,
    INF,
    LARGE,
    LAYERS,
    NAN,
    SMALL,
    WGMMA,
    Layer,
    call_of,
    empty_like_output,
    expected,
    full_epilogue,
    pointer,
    run,
    strided,
)

from subbit_infer import PackedActivations, pack
from subbit_infer.core.activations import pack_signs, word_count
from subbit_infer.core.codebook import decode
from subbit_infer.core.epilogue import ACTIVATIONS


@pytest.mark.parametrize("capability", [A100, B200])
@pytest.mark.parametrize("tile", [LARGE, SMALL])
@pytest.mark.parametrize("name", LAYERS)
def test_binary_of_floats(product_shim, name, tile, capability):
    layer = LAYERS[name]
    x = integers(*layer.shape)
    for sign_zero, layout, element in ((0, "contiguous", torch.float32), (1, "channels_last", torch.float16)):
        given = strided(x.to(element), layout)
        y = run(
            product_shim, layer, given, binary=True, capability=capability, sign_zero=sign_zero, tile=tile,
            element=element, out=layout,
        )  # fmt: skip
        assert torch.equal(y.float(), expected(layer, signs(x, sign_zero)).to(element).float())


@pytest.mark.parametrize("capability", [A100, B200])
@pytest.mark.parametrize("tile", [LARGE, SMALL])
@pytest.mark.parametrize("sign_zero", [0, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_binary_of_packed(product_shim, name, sign_zero, tile, capability):
    layer = LAYERS[name]
    x = pack(integers(*layer.shape), sign_zero=sign_zero)
    y = run(product_shim, layer, x, binary=True, capability=capability, tile=tile, out="channels_last")
    assert torch.equal(y, expected(layer, x.unpack()))


@pytest.mark.parametrize("tile", [LARGE, SMALL, WGMMA])
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("name", LAYERS)
def test_floats(product_shim, name, element, tile):
    layer = LAYERS[name]
    x = integers(*layer.shape).to(element)
    layouts = ("contiguous", "channels_last", "gaps") if tile == SMALL else ("channels_last",)
    for layout in layouts:
        out = "contiguous" if layout == "gaps" else layout
        y = run(product_shim, layer, strided(x, layout), element=element, tile=tile, out=out)
        assert torch.equal(y, expected(layer, x).to(element)), layout


@pytest.mark.parametrize(
    ("tile", "kind"),
    [*((tile, kind) for tile in (LARGE, SMALL) for kind in (FLOATS, BITS, BYTES)), (WGMMA, FLOATS)],
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue_and_packed_results(product_shim, activation, kind, tile):
    element = (*ELEMENTS, torch.float16)[ACTIVATIONS.index(activation)]
    for name in ("odd", "wide groups", "1x1") if tile == SMALL else ("wide groups", "1x1"):
        layer = LAYERS[name]
        epilogue = full_epilogue(layer, element, activation)
        pack_shift = integers(layer.out_channels, seed=5) / 8
        x = integers(*layer.shape).to(element)
        v = expected(layer, x.sign() if kind["binary"] else x, epilogue)
        n, c, h, w = layer.sizes()
        for sign_zero, has_y in ((0, True), (1, False)):
            plus = torch.full((n, h, w, word_count(c)), 77)
            nonzero = None if sign_zero else plus.clone()
            memory, y = empty_like_output(layer, element, "contiguous")
            call, _alive = call_of(
                layer, x, y if has_y else None, (plus, nonzero), element=element, tile=tile,
                pack_shift=pack_shift, epilogue=epilogue, **kind,
            )  # fmt: skip
            assert product_shim.product_call(ctypes.byref(call)) == 0, product_shim.product_error()
            expected_plus, expected_nonzero = pack_signs(v, pack_shift, sign_zero)
            assert torch.equal(plus, expected_plus)
            assert nonzero is None or torch.equal(nonzero, expected_nonzero)
            assert torch.equal(y, v.to(element)) if has_y else (memory == 77).all()


def test_packed_results_of_groups_that_share_words_are_refused(product_shim):
    layer = LAYERS["groups"]
    n, c, h, w = layer.sizes()
    plus = torch.zeros(n, h, w, word_count(c), dtype=torch.int64)
    call, _alive = call_of(layer, integers(*layer.shape), None, (plus, None))
    assert product_shim.product_call(ctypes.byref(call)) == 1


def test_positions_beyond_32_bits_are_refused(product_shim):
    layer = Layer(UNIT_1X1, (1, 8, 1, 1), 1)
    for field_name, value in (("height", 1 << 29), ("batch", 1 << 29), ("in_channels", 1 << 25)):
        call, _alive = call_of(layer, torch.zeros(1, 8, 1, 1), torch.zeros(1, 1, 1, 1))
        setattr(call, field_name, value)
        assert product_shim.product_call(ctypes.byref(call)) == 1


@pytest.mark.parametrize("element", ELEMENTS)
def test_nan_and_infinity_reach_what_sees_them(product_shim, element):
    layer = Layer(UNIT_3X3, (1, 9, 7, 7), 6, (1, 1), (1, 1))
    x = integers(*layer.shape).to(element)
    x[0, 3, 1, 1] = NAN
    x[0, 2, 4, 4] = INF
    x[0, 8, 5, 4] = -INF
    sums = F.conv2d(x.double(), decode(layer.indices, layer.codebook).double(), padding=1).to(element)
    for tile in (LARGE, SMALL, WGMMA):
        y = run(product_shim, layer, x, element=element, tile=tile)
        assert torch.equal(y.nan_to_num(5.5, 1e4, -1e4), sums.nan_to_num(5.5, 1e4, -1e4))


@pytest.mark.parametrize("capability", [A100, B200])
@pytest.mark.parametrize("sign_zero", [0, 1])
def test_the_sign_of_nan_is_zero(product_shim, sign_zero, capability):
    layer = LAYERS["one channel"]
    x = integers(*layer.shape)
    x[0, 0, 2, 2] = NAN
    values = signs(x, sign_zero)
    values[0, 0, 2, 2] = 0
    y = run(product_shim, layer, x, binary=True, capability=capability, sign_zero=sign_zero)
    assert torch.equal(y, expected(layer, values))


@pytest.mark.parametrize("at_end", [False, True])
def test_nothing_outside_of_x_is_read(product_shim, at_end):
    layer = Layer(UNIT_3X3, (2, 56, 5, 3), 5, (2, 1), (1, 1))  # channels end within the second half of a word
    n, c, h, w = layer.shape
    floats = GuardedFloats(n, c, h, w, at_end=at_end).tensor.copy_(integers(*layer.shape))
    numbers = GuardedFloats(n, h, w, c // 2, at_end=at_end).tensor.view(torch.float16).permute(0, 3, 1, 2)
    numbers.copy_(floats)
    words = GuardedFloats(n, h, w, 2, at_end=at_end).tensor.view(torch.int64)
    words.copy_(pack(floats, sign_zero=1).plus)
    packed = PackedActivations(words, None, c)
    for tile in (LARGE, SMALL, WGMMA):
        assert torch.equal(run(product_shim, layer, floats, tile=tile), expected(layer, floats))
        assert torch.equal(
            run(product_shim, layer, numbers, tile=tile, element=torch.float16).float(), expected(layer, floats)
        )
        packed = PackedActivations(words, None, c)
        for kind in (BITS, BYTES) if tile != WGMMA else ():
            assert torch.equal(run(product_shim, layer, packed, tile=tile, **kind), expected(layer, packed.unpack()))
        if tile != WGMMA:
            assert torch.equal(run(product_shim, layer, floats, tile=tile, **BYTES), expected(layer, floats.sign()))


def test_what_is_read_in_place_needs_no_scratch_memory(product_shim):
    layer = LAYERS["a whole step"]
    x = integers(*layer.shape)
    last = strided(x.half(), "channels_last")
    bytes_of_x = x.numel() * 2
    cases = (
        (last, {"element": torch.float16}, 0),
        (pack(x), BITS, 0),
        (x.half(), {"element": torch.float16}, bytes_of_x),
        (x, {}, 3 * bytes_of_x),
        (x, BITS, 2 * x.numel() // 8),
        (x, BYTES, x.numel()),  # a byte each
        (pack(x), BYTES, x.numel()),
    )
    for given, options, expected_bytes in cases:
        call, _alive = call_of(layer, given, **options)
        assert product_shim.product_scratch(ctypes.byref(call)) == expected_bytes


def test_x_that_is_not_aligned_is_copied(product_shim):
    layer = LAYERS["a whole step"]
    n, c, h, w = layer.shape
    x = torch.empty(n * h * w * c + 1, dtype=torch.float16)[1:].view(n, h, w, c).permute(0, 3, 1, 2)
    x.copy_(integers(*layer.shape))
    assert torch.equal(run(product_shim, layer, x, element=torch.float16), expected(layer, x).half())


def test_the_tile_follows_from_sizes(product_shim):
    for rows, is_large in ((127, 0), (128, 1)):
        layer = Layer(UNIT_1X1, (1, 8, rows, 128), 1)
        x = integers(*layer.shape).half()
        call, _alive = call_of(layer, x, element=torch.float16)
        assert product_shim.product_is_large(ctypes.byref(call)) == is_large
        assert torch.equal(run(product_shim, layer, x, element=torch.float16), expected(layer, x).half())


# A tile of 128 outputs, 128 or 64 pixels and 64 channels a stage: less, as many, more; and more tiles.
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize(
    ("channels", "outputs", "width"), [(56, 127, 127), (64, 128, 128), (72, 129, 129), (136, 160, 257)]
)
def test_wgmma_at_the_edges_of_its_tile(product_shim, channels, outputs, width, element):
    layer = Layer(UNIT_1X1, (1, channels, 1, width), outputs, codewords=32)
    x = integers(*layer.shape).to(element)
    assert torch.equal(run(product_shim, layer, x, element=element, tile=WGMMA), expected(layer, x).to(element))


@pytest.mark.parametrize("element", ELEMENTS)
def test_wgmma_is_taken_on_hopper_where_its_tile_fills_the_device(product_shim, element):
    pixels = 64 if element == torch.float32 else 128
    for rows, capability, binary, is_wgmma in (
        (128, H100, False, 1),
        (127, H100, False, 0),
        (128, H100, True, 0),
        (128, A100, False, 0),
        (128, B200, False, 0),
    ):
        layer = Layer(UNIT_1X1, (1, 8, rows, pixels), 1)
        x = integers(*layer.shape).to(element)
        options = {"element": element, "capability": capability, "binary": binary}
        call, _alive = call_of(layer, x, **options)
        assert product_shim.product_is_wgmma(ctypes.byref(call)) == is_wgmma
    layer = Layer(UNIT_1X1, (1, 8, 128, pixels), 1)
    x = integers(*layer.shape).to(element)
    y = run(product_shim, layer, x, element=element, capability=H100)
    assert torch.equal(y, expected(layer, x).to(element))


@pytest.mark.parametrize("sign_zero", [0, 1])
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "gaps"])
@pytest.mark.parametrize("shape", [(2, 70, 3, 5), (1, 1, 1, 1), (1, 128, 2, 2), (3, 31, 4, 9)])
def test_pack(product_shim, shape, layout, element, sign_zero):
    x = integers(*shape).to(element)
    x[0, 0, 0, 0] = NAN
    for shift in (None, integers(shape[1], seed=3)):
        given = strided(x, layout)
        plus, nonzero = pack_signs(x, shift, sign_zero)
        mine = [torch.full_like(plus, 77), None if sign_zero else torch.full_like(plus, 77)]
        sizes, strides = (ctypes.c_int64 * 4)(*shape), (ctypes.c_int64 * 4)(*given.stride())
        pointers = (ctypes.c_void_p(pointer(t)) for t in (given, shift, *mine))
        assert product_shim.pack_call(sizes, strides, ctypes.c_int64(ELEMENTS.index(element)), *pointers) == 0
        assert torch.equal(mine[0], plus)
        assert mine[1] is None or torch.equal(mine[1], nonzero)
