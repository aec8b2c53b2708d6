"""The tensor cores' route, run on the CPU by the host shim, against the reference."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import UNIT_1X1, UNIT_3X3, GuardedFloats, integers, random_weight, signs
from host_shim import build_shim

from subbit_infer import PackedActivations, pack
from subbit_infer.core import reference
from subbit_infer.core.activations import pack_signs, word_count
from subbit_infer.core.codebook import decode, tau_of
from subbit_infer.core.epilogue import ACTIVATIONS, Epilogue

ELEMENTS = (torch.float32, torch.float16, torch.bfloat16)
BY_SIZE, LARGE, SMALL, WGMMA = range(4)
A100, H100, B200 = 80, 90, 100  # compute capabilities
NAN, INF = float("nan"), float("inf")
NO_EPILOGUE = Epilogue()


class Call(ctypes.Structure):
    """ConvCall of tests/cuda/shim/call.h."""

    _fields_ = tuple(
        (name, kind)
        for kind, names in {
            ctypes.c_int64: ("unit", "binary", "sign_zero", "activation", "element", "codewords", "tile", "capability",
                             "batch", "in_channels", "height", "width", "out_channels", "out_height", "out_width",
                             "groups"),
            ctypes.c_int64 * 2: ("stride", "pad", "dilation"),
            ctypes.c_int64 * 4: ("x_strides", "y_strides", "residual_strides"),
            ctypes.c_void_p: ("x", "x_plus", "x_nonzero", "indices", "codebook", "scale", "bias", "residual", "slope",
                              "shift", "pack_shift", "y", "y_plus", "y_nonzero"),
        }.items()
        for name in names
    )  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    library = build_shim(tmp_path_factory.mktemp("product_shim"), "product_shim")
    library.product_error.restype = ctypes.c_char_p
    library.product_scratch.restype = ctypes.c_int64
    return library


@dataclass
class Layer:
    """A weight and what is done with it."""

    unit: tuple[int, int, int]
    shape: tuple[int, int, int, int]  # N, C_in, H, W
    out_channels: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    codewords: int = 11
    indices: torch.Tensor = field(init=False)
    codebook: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        units = self.shape[1] // self.groups // self.unit[0]
        self.indices, self.codebook = random_weight(self.unit, self.out_channels, units, self.codewords)

    @property
    def geometry(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.groups

    def sizes(self) -> tuple[int, int, int, int]:
        kernel = self.unit[1]
        out = [
            (self.shape[i + 2] + 2 * self.padding[i] - self.dilation[i] * (kernel - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        ]
        return self.shape[0], self.out_channels, out[0], out[1]

    def words(self) -> torch.Tensor:
        """The indices as the device has them: rows of 32-bit words."""
        tau = tau_of(self.codewords)
        rows = []
        for row in self.indices.tolist():
            number = sum(index << (i * tau) for i, index in enumerate(row))
            rows.append([number >> at & 0xFFFFFFFF for at in range(0, len(row) * tau, 32)])
        return torch.tensor(rows, dtype=torch.int64).to(torch.uint32)

    def patterns(self) -> torch.Tensor:
        bits = (self.codebook.flatten(1) > 0).to(torch.int64)
        return (bits << torch.arange(bits.shape[1])).sum(1).to(torch.uint16)


LAYERS = {
    "one channel": Layer(UNIT_3X3, (1, 1, 5, 5), 3, padding=(1, 1)),
    "a whole step": Layer(UNIT_3X3, (2, 64, 5, 6), 40, padding=(1, 1), codewords=32),
    "odd": Layer(UNIT_3X3, (1, 70, 5, 7), 70, padding=(1, 1), codewords=256),
    "strided": Layer(UNIT_3X3, (1, 40, 9, 8), 12, (2, 3), (0, 2), (2, 1), codewords=2),
    "groups": Layer(UNIT_3X3, (2, 96, 4, 5), 20, padding=(1, 1), groups=2),
    "wide groups": Layer(UNIT_3X3, (1, 128, 3, 4), 128, padding=(1, 1), groups=2),
    "depthwise": Layer(UNIT_3X3, (1, 5, 4, 4), 10, padding=(1, 1), groups=5, codewords=1),
    "mostly padding": Layer(UNIT_3X3, (1, 9, 1, 2), 5, padding=(3, 2), dilation=(2, 2)),
    "1x1": Layer(UNIT_1X1, (2, 72, 3, 5), 65, codewords=32),
    "1x1 strided": Layer(UNIT_1X1, (1, 16, 7, 6), 8, (2, 2), (1, 1), codewords=256),
    "1x1 groups": Layer(UNIT_1X1, (1, 80, 3, 3), 6, groups=2),
    "long": Layer(UNIT_3X3, (1, 300, 3, 3), 9, padding=(1, 1)),
}  # fmt: skip


def strided(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values in another order in memory."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "gaps":
        n, c, h, w = x.shape
        return (
            torch.full((n, w + 1, c + 3, h + 2), NAN, dtype=x.dtype)[:, :w, 1 : c + 1, 2:].permute(0, 2, 3, 1).copy_(x)
        )
    return x.contiguous()


def pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def call_of(
    layer: Layer,
    x: torch.Tensor | PackedActivations,
    y: torch.Tensor | None = None,
    words: tuple[torch.Tensor, torch.Tensor | None] | None = None,
    *,
    element: torch.dtype = torch.float32,
    binary: bool = False,
    sign_zero: int = 0,
    tile: int = BY_SIZE,
    capability: int = A100,
    pack_shift: torch.Tensor | None = None,
    epilogue: Epilogue = NO_EPILOGUE,
) -> tuple[Call, list[Any]]:
    """The call, and what must live as long as it."""
    packed = isinstance(x, PackedActivations)
    indices, patterns = layer.words(), layer.patterns()
    plus, nonzero = words or (None, None)

    def strides(tensor: torch.Tensor | None) -> Any:
        return (ctypes.c_int64 * 4)(*(tensor.stride() if tensor is not None else (0, 0, 0, 0)))

    n, c, h, w = layer.shape
    _, out_channels, out_height, out_width = layer.sizes()
    call = Call(
        int(layer.unit == UNIT_1X1), int(binary), sign_zero, ACTIVATIONS.index(epilogue.activation),
        ELEMENTS.index(element), layer.codewords, tile, capability, n, c, h, w,
        out_channels, out_height, out_width, layer.groups,
        *((ctypes.c_int64 * 2)(*pair) for pair in (layer.stride, layer.padding, layer.dilation)),
        strides(None if packed else x), strides(y), strides(epilogue.residual),
        None if packed else pointer(x), pointer(x.plus) if packed else None, pointer(x.nonzero) if packed else None,
        pointer(indices), pointer(patterns), pointer(epilogue.scale), pointer(epilogue.bias),
        pointer(epilogue.residual), pointer(epilogue.slope), pointer(epilogue.shift), pointer(pack_shift),
        pointer(y), pointer(plus), pointer(nonzero),
    )  # fmt: skip
    return call, [x, y, words, indices, patterns, epilogue, pack_shift]


def empty_like_output(layer: Layer, element: torch.dtype, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Poisoned memory, and the output inside."""
    n, c, h, w = layer.sizes()
    memory = torch.full((n * c * h * w + 64,), 77.0, dtype=element)
    inside = memory[32 : 32 + n * c * h * w]
    if layout == "channels_last":
        return memory, inside.view(n, h, w, c).permute(0, 3, 1, 2)
    return memory, inside.view(n, c, h, w)


def run(
    library: ctypes.CDLL,
    layer: Layer,
    x: torch.Tensor | PackedActivations,
    *,
    element: torch.dtype = torch.float32,
    out: str = "contiguous",
    **options: Any,
) -> torch.Tensor:
    """The product's float result, with nothing around it written."""
    memory, y = empty_like_output(layer, element, out)
    call, _alive = call_of(layer, x, y, element=element, **options)
    assert library.product_call(ctypes.byref(call)) == 0, library.product_error()
    size = y.numel()
    assert (memory[:32] == 77).all()
    assert (memory[32 + size :] == 77).all()
    return y


def expected(layer: Layer, x: torch.Tensor, epilogue: Epilogue = NO_EPILOGUE) -> torch.Tensor:
    """By decoding; exact where sums are integers."""
    sums = reference.conv2d(x.double(), layer.indices, layer.codebook, None, *layer.geometry)
    assert (sums == sums.float()).all()
    return epilogue.apply(sums.float())


def full_epilogue(layer: Layer, element: torch.dtype, activation: str) -> Epilogue:
    def of_channels(seed: int) -> torch.Tensor:
        return torch.randn(layer.out_channels, generator=torch.Generator().manual_seed(seed))

    residual = strided(integers(*layer.sizes(), seed=9).to(element), "gaps")
    slope = of_channels(3) if activation == "prelu" else None
    return Epilogue(of_channels(1).abs() / 16, of_channels(2), residual, activation, slope, of_channels(4))


@pytest.mark.parametrize("is_bfloat16", [0, 1])
def test_the_emulated_product_of_halves_is_a_matrix_product(library, is_bfloat16):
    dtype = torch.bfloat16 if is_bfloat16 else torch.float16
    a, b = integers(16, 16, seed=1).to(dtype), integers(16, 8, seed=2).to(dtype)
    d = integers(16, 8, seed=3)
    by_columns, product = b.t().contiguous(), d + a.float() @ b.float()
    library.mma_float16(*map(ctypes.c_void_p, (a.data_ptr(), by_columns.data_ptr(), d.data_ptr())), is_bfloat16)
    assert torch.equal(d, product)


def test_the_emulated_product_of_bits_counts_common_ones(library):
    a, b = (integers(*shape, seed=i) > 0 for i, shape in enumerate(((16, 256), (256, 8))))
    d = integers(16, 8, seed=3).to(torch.int32)
    by_columns, product = b.t().contiguous(), d + (a.int() @ b.int())
    library.mma_bits(*map(ctypes.c_void_p, (a.data_ptr(), by_columns.data_ptr(), d.data_ptr())))
    assert torch.equal(d, product)


def multiply_by_wgmma(
    library: ctypes.CDLL, columns: int, is_bfloat16: int, piece: int, without: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the emulated instruction makes of 16 of 64 numbers along K, and the product."""
    dtype = torch.bfloat16 if is_bfloat16 else torch.float16
    a, rows = integers(64, 16, seed=1).to(dtype), integers(columns, 64, seed=2).to(dtype)
    d = integers(64, columns, seed=3)
    product = d + a.float() @ rows[:, 16 * piece : 16 * (piece + 1)].t().float()
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, rows, d))
    assert library.wgmma_float16(*pointers, columns, is_bfloat16, piece, without) == 0, library.product_error()
    return d, product


@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize("is_bfloat16", [0, 1])
def test_the_emulated_product_of_a_warpgroup_is_a_matrix_product(library, is_bfloat16, columns):
    for piece in range(4):
        assert torch.equal(*multiply_by_wgmma(library, columns, is_bfloat16, piece))


def test_the_emulated_product_of_a_warpgroup_is_there_when_it_is_waited_for(library):
    assert not torch.equal(*multiply_by_wgmma(library, 64, 0, 0, without=1))


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
def test_the_emulated_product_of_a_warpgroup_sees_what_numbers_do_not_show(library, without, said):
    with pytest.raises(AssertionError, match=said):
        multiply_by_wgmma(library, 64, 0, 0, without)


def test_the_emulated_product_of_bytes_is_a_matrix_product(library):
    a, b = (integers(*shape, seed=i).mul(-18).to(torch.int8) for i, shape in enumerate(((16, 32), (32, 8))))
    d = integers(16, 8, seed=3).to(torch.int32)
    by_columns, product = b.t().contiguous(), d + (a.int() @ b.int())
    library.mma_bytes(*map(ctypes.c_void_p, (a.data_ptr(), by_columns.data_ptr(), d.data_ptr())))
    assert torch.equal(d, product)


@pytest.mark.parametrize("capability", [A100, B200])
@pytest.mark.parametrize("tile", [LARGE, SMALL])
@pytest.mark.parametrize("name", LAYERS)
def test_binary_of_floats(library, name, tile, capability):
    layer = LAYERS[name]
    x = integers(*layer.shape)
    for sign_zero, layout, element in ((0, "contiguous", torch.float32), (1, "channels_last", torch.float16)):
        given = strided(x.to(element), layout)
        y = run(
            library, layer, given, binary=True, capability=capability, sign_zero=sign_zero, tile=tile,
            element=element, out=layout,
        )  # fmt: skip
        assert torch.equal(y.float(), expected(layer, signs(x, sign_zero)).to(element).float())


@pytest.mark.parametrize("capability", [A100, B200])
@pytest.mark.parametrize("tile", [LARGE, SMALL])
@pytest.mark.parametrize("sign_zero", [0, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_binary_of_packed(library, name, sign_zero, tile, capability):
    layer = LAYERS[name]
    x = pack(integers(*layer.shape), sign_zero=sign_zero)
    y = run(library, layer, x, binary=True, capability=capability, tile=tile, out="channels_last")
    assert torch.equal(y, expected(layer, x.unpack()))


@pytest.mark.parametrize("tile", [LARGE, SMALL, WGMMA])
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("name", LAYERS)
def test_floats(library, name, element, tile):
    layer = LAYERS[name]
    x = integers(*layer.shape).to(element)
    layouts = ("contiguous", "channels_last", "gaps") if tile == SMALL else ("channels_last",)
    for layout in layouts:
        out = "contiguous" if layout == "gaps" else layout
        y = run(library, layer, strided(x, layout), element=element, tile=tile, out=out)
        assert torch.equal(y, expected(layer, x).to(element)), layout


FLOATS, BITS, BYTES = {"binary": False}, {"binary": True}, {"binary": True, "capability": B200}


@pytest.mark.parametrize(
    ("tile", "kind"),
    [*((tile, kind) for tile in (LARGE, SMALL) for kind in (FLOATS, BITS, BYTES)), (WGMMA, FLOATS)],
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue_and_packed_results(library, activation, kind, tile):
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
            assert library.product_call(ctypes.byref(call)) == 0, library.product_error()
            expected_plus, expected_nonzero = pack_signs(v, pack_shift, sign_zero)
            assert torch.equal(plus, expected_plus)
            assert nonzero is None or torch.equal(nonzero, expected_nonzero)
            assert torch.equal(y, v.to(element)) if has_y else (memory == 77).all()


def test_packed_results_of_groups_that_share_words_are_refused(library):
    layer = LAYERS["groups"]
    n, c, h, w = layer.sizes()
    plus = torch.zeros(n, h, w, word_count(c), dtype=torch.int64)
    call, _alive = call_of(layer, integers(*layer.shape), None, (plus, None))
    assert library.product_call(ctypes.byref(call)) == 1


def test_positions_beyond_32_bits_are_refused(library):
    layer = Layer(UNIT_1X1, (1, 8, 1, 1), 1)
    for field_name, value in (("height", 1 << 29), ("batch", 1 << 29), ("in_channels", 1 << 25)):
        call, _alive = call_of(layer, torch.zeros(1, 8, 1, 1), torch.zeros(1, 1, 1, 1))
        setattr(call, field_name, value)
        assert library.product_call(ctypes.byref(call)) == 1


@pytest.mark.parametrize("element", ELEMENTS)
def test_nan_and_infinity_reach_what_sees_them(library, element):
    layer = Layer(UNIT_3X3, (1, 9, 7, 7), 6, (1, 1), (1, 1))
    x = integers(*layer.shape).to(element)
    x[0, 3, 1, 1] = NAN
    x[0, 2, 4, 4] = INF
    x[0, 8, 5, 4] = -INF
    sums = F.conv2d(x.double(), decode(layer.indices, layer.codebook).double(), padding=1).to(element)
    for tile in (LARGE, SMALL, WGMMA):
        y = run(library, layer, x, element=element, tile=tile)
        assert torch.equal(y.nan_to_num(5.5, 1e4, -1e4), sums.nan_to_num(5.5, 1e4, -1e4))


@pytest.mark.parametrize("capability", [A100, B200])
@pytest.mark.parametrize("sign_zero", [0, 1])
def test_the_sign_of_nan_is_zero(library, sign_zero, capability):
    layer = LAYERS["one channel"]
    x = integers(*layer.shape)
    x[0, 0, 2, 2] = NAN
    values = signs(x, sign_zero)
    values[0, 0, 2, 2] = 0
    y = run(library, layer, x, binary=True, capability=capability, sign_zero=sign_zero)
    assert torch.equal(y, expected(layer, values))


def split(library: ctypes.CDLL, x: torch.Tensor) -> torch.Tensor:
    parts = torch.empty(3, *x.shape)
    library.split_call(ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(x.numel()), ctypes.c_void_p(parts.data_ptr()))
    return parts


def test_three_bfloat16_parts_are_exactly_a_float32(library):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31 - 1, (1 << 16,), generator=generator).to(torch.int32).view(torch.float32)
    x = x[x.isfinite() & (x.abs() >= 2.0**-109)]
    low, middle, high = split(library, x)
    assert torch.equal(low.double() + middle.double() + high.double(), x.double())
    assert (middle.abs() <= x.abs() * 2.0**-7).all()
    assert (low.abs() <= x.abs() * 2.0**-15).all()


def test_parts_of_special_and_of_tiny_numbers(library):
    special = torch.tensor([NAN, INF, -INF, 0.0, -0.0, torch.finfo(torch.float32).max])
    special = torch.cat([special, torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)])
    total = split(library, special).double().sum(0)
    assert torch.equal(total.nan_to_num(7, 8, 9), special.double().nan_to_num(7, 8, 9))
    tiny = torch.tensor([1e-45, -3e-40, 2.0**-126, 1.2345e-35])
    assert ((split(library, tiny).double().sum(0) - tiny.double()).abs() < 2.0**-133).all()


@pytest.mark.parametrize("name", ["a whole step", "long", "1x1"])
def test_float32_is_within_its_bound(library, name):
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
        y = run(library, layer, x, tile=tile)
        bound = 1.02 * (numbers + 1) * 2.0**-23 + stages * 2.0**-24
        assert ((y.double() - exact).abs() <= bound * size).all()
        assert ((y.double() - exact).abs() <= 4e-7 * size).all()  # and what it really is here


@pytest.mark.parametrize("at_end", [False, True])
def test_nothing_outside_of_x_is_read(library, at_end):
    layer = Layer(UNIT_3X3, (2, 56, 5, 3), 5, (2, 1), (1, 1))  # channels end within the second half of a word
    n, c, h, w = layer.shape
    floats = GuardedFloats(n, c, h, w, at_end=at_end).tensor.copy_(integers(*layer.shape))
    halves = GuardedFloats(n, h, w, c // 2, at_end=at_end).tensor.view(torch.float16).permute(0, 3, 1, 2)
    halves.copy_(floats)
    words = GuardedFloats(n, h, w, 2, at_end=at_end).tensor.view(torch.int64)
    words.copy_(pack(floats, sign_zero=1).plus)
    packed = PackedActivations(words, None, c)
    for tile in (LARGE, SMALL, WGMMA):
        assert torch.equal(run(library, layer, floats, tile=tile), expected(layer, floats))
        assert torch.equal(
            run(library, layer, halves, tile=tile, element=torch.float16).float(), expected(layer, floats)
        )
        packed = PackedActivations(words, None, c)
        for kind in (BITS, BYTES) if tile != WGMMA else ():
            assert torch.equal(run(library, layer, packed, tile=tile, **kind), expected(layer, packed.unpack()))
        if tile != WGMMA:
            assert torch.equal(run(library, layer, floats, tile=tile, **BYTES), expected(layer, floats.sign()))


def test_what_is_read_in_place_needs_no_scratch_memory(library):
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
        assert library.product_scratch(ctypes.byref(call)) == expected_bytes


def test_x_that_is_not_aligned_is_copied(library):
    layer = LAYERS["a whole step"]
    n, c, h, w = layer.shape
    x = torch.empty(n * h * w * c + 1, dtype=torch.float16)[1:].view(n, h, w, c).permute(0, 3, 1, 2)
    x.copy_(integers(*layer.shape))
    assert torch.equal(run(library, layer, x, element=torch.float16), expected(layer, x).half())


def test_the_tile_follows_from_sizes(library):
    for rows, is_large in ((127, 0), (128, 1)):
        layer = Layer(UNIT_1X1, (1, 8, rows, 128), 1)
        x = integers(*layer.shape).half()
        call, _alive = call_of(layer, x, element=torch.float16)
        assert library.product_is_large(ctypes.byref(call)) == is_large
        assert torch.equal(run(library, layer, x, element=torch.float16), expected(layer, x).half())


# A tile of 128 outputs, 128 or 64 pixels and 64 channels a stage: less, as many, more; and more tiles.
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize(
    ("channels", "outputs", "width"), [(56, 127, 127), (64, 128, 128), (72, 129, 129), (136, 160, 257)]
)
def test_wgmma_at_the_edges_of_its_tile(library, channels, outputs, width, element):
    layer = Layer(UNIT_1X1, (1, channels, 1, width), outputs, codewords=32)
    x = integers(*layer.shape).to(element)
    assert torch.equal(run(library, layer, x, element=element, tile=WGMMA), expected(layer, x).to(element))


@pytest.mark.parametrize("element", ELEMENTS)
def test_wgmma_is_taken_on_hopper_where_its_tile_fills_the_device(library, element):
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
        assert library.product_is_wgmma(ctypes.byref(call)) == is_wgmma
    layer = Layer(UNIT_1X1, (1, 8, 128, pixels), 1)
    x = integers(*layer.shape).to(element)
    y = run(library, layer, x, element=element, capability=H100)
    assert torch.equal(y, expected(layer, x).to(element))


@pytest.mark.parametrize("sign_zero", [0, 1])
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "gaps"])
@pytest.mark.parametrize("shape", [(2, 70, 3, 5), (1, 1, 1, 1), (1, 128, 2, 2), (3, 31, 4, 9)])
def test_pack(library, shape, layout, element, sign_zero):
    x = integers(*shape).to(element)
    x[0, 0, 0, 0] = NAN
    for shift in (None, integers(shape[1], seed=3)):
        given = strided(x, layout)
        plus, nonzero = pack_signs(x, shift, sign_zero)
        mine = [torch.full_like(plus, 77), None if sign_zero else torch.full_like(plus, 77)]
        sizes, strides = (ctypes.c_int64 * 4)(*shape), (ctypes.c_int64 * 4)(*given.stride())
        pointers = (ctypes.c_void_p(pointer(t)) for t in (given, shift, *mine))
        assert library.pack_call(sizes, strides, ctypes.c_int64(ELEMENTS.index(element)), *pointers) == 0
        assert torch.equal(mine[0], plus)
        assert mine[1] is None or torch.equal(mine[1], nonzero)
