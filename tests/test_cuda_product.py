"""The tensor cores' route, run on the CPU by the host shim, against the reference."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import cuda_host
import pytest
import torch
import torch.nn.functional as F
from helpers import UNIT_1X1, UNIT_3X3, GuardedFloats, integers, random_weight, signs

from subbit_infer import PackedActivations, pack, reference
from subbit_infer.activations import pack_signs, word_count
from subbit_infer.codebook import decode, tau_of
from subbit_infer.epilogue import ACTIVATIONS, Epilogue

ELEMENTS = (torch.float32, torch.float16, torch.bfloat16)
BY_SIZE, LARGE, SMALL = range(3)
NAN, INF = float("nan"), float("inf")


def _array(count: int) -> Any:
    return ctypes.c_int64 * count


class Call(ctypes.Structure):
    """ProductCall of tests/cuda/product_host.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in "unit binary sign_zero activation element codewords tile".split()),
        *((name, ctypes.c_int64) for name in "batch in_channels height width out_channels".split()),
        *((name, ctypes.c_int64) for name in "out_height out_width groups".split()),
        *((name, _array(2)) for name in "stride pad dilation".split()),
        *((name, _array(4)) for name in "x_strides y_strides residual_strides".split()),
        *((name, ctypes.c_void_p) for name in "x x_plus x_nonzero indices codebook scale bias residual".split()),
        *((name, ctypes.c_void_p) for name in "slope shift pack_shift y y_plus y_nonzero".split()),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    return cuda_host.build("product_host.cpp", tmp_path_factory.mktemp("cuda"))


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
        return torch.full((n, w + 1, c + 3, h + 2), NAN, dtype=x.dtype)[:, :w, 1 : c + 1, 2:].permute(0, 2, 3, 1).copy_(x)
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
    pack_shift: torch.Tensor | None = None,
    epilogue: Epilogue = Epilogue(),
) -> tuple[Call, list[Any]]:
    """The call, and what must live as long as it."""
    packed = isinstance(x, PackedActivations)
    indices, patterns = layer.words(), layer.patterns()
    plus, nonzero = words or (None, None)

    def strides(tensor: torch.Tensor | None) -> Any:
        return _array(4)(*(tensor.stride() if tensor is not None else (0, 0, 0, 0)))

    n, c, h, w = layer.shape
    _, out_channels, out_height, out_width = layer.sizes()
    call = Call(
        int(layer.unit == UNIT_1X1), int(binary), sign_zero, ACTIVATIONS.index(epilogue.activation),
        ELEMENTS.index(element), layer.codewords, tile, n, c, h, w, out_channels, out_height, out_width, layer.groups,
        _array(2)(*layer.stride), _array(2)(*layer.padding), _array(2)(*layer.dilation),
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
    assert library.product_call(ctypes.byref(call)) == 0, ctypes.string_at(library.product_error())
    size = y.numel()
    assert (memory[:32] == 77).all()
    assert (memory[32 + size :] == 77).all()
    return y


def expected(layer: Layer, x: torch.Tensor, epilogue: Epilogue = Epilogue()) -> torch.Tensor:
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
    library.mma_halves(*map(ctypes.c_void_p, (a.data_ptr(), by_columns.data_ptr(), d.data_ptr())), is_bfloat16)
    assert torch.equal(d, product)


def test_the_emulated_product_of_bits_counts_common_ones(library):
    a, b = (integers(*shape, seed=i) > 0 for i, shape in enumerate(((16, 256), (256, 8))))
    d = integers(16, 8, seed=3).to(torch.int32)
    by_columns, product = b.t().contiguous(), d + (a.int() @ b.int())
    library.mma_bits(*map(ctypes.c_void_p, (a.data_ptr(), by_columns.data_ptr(), d.data_ptr())))
    assert torch.equal(d, product)


@pytest.mark.parametrize("tile", [LARGE, SMALL])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "gaps"])
@pytest.mark.parametrize("name", LAYERS)
def test_binary_of_floats(library, name, layout, tile):
    layer = LAYERS[name]
    x = integers(*layer.shape)
    for sign_zero in (0, 1):
        y = run(library, layer, strided(x, layout), binary=True, sign_zero=sign_zero, tile=tile)
        assert torch.equal(y, expected(layer, signs(x, sign_zero)))


@pytest.mark.parametrize("tile", [LARGE, SMALL])
@pytest.mark.parametrize("sign_zero", [0, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_binary_of_packed(library, name, sign_zero, tile):
    layer = LAYERS[name]
    x = pack(integers(*layer.shape), sign_zero=sign_zero)
    y = run(library, layer, x, binary=True, tile=tile, out="channels_last")
    assert torch.equal(y, expected(layer, x.unpack()))


@pytest.mark.parametrize("tile", [LARGE, SMALL])
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "gaps"])
@pytest.mark.parametrize("name", LAYERS)
def test_floats(library, name, layout, element, tile):
    layer = LAYERS[name]
    x = integers(*layer.shape).to(element)
    y = run(library, layer, strided(x, layout), element=element, tile=tile, out=layout.replace("gaps", "contiguous"))
    assert torch.equal(y, expected(layer, x).to(element))
