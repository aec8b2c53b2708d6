"""The CUDA kernels' bodies on the CPU, under the host shim (csrc/cuda/common/shim.h), against the reference."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from helpers import UNIT_1X1, UNIT_3X3, integers, prepared, random_weight, run_kernel
from torch import Tensor

from subbit_infer import PackedWeight
from subbit_infer.core import reference
from subbit_infer.core.activations import PackedActivations, pack_signs, word_count
from subbit_infer.core.conv_args import ConvArgs, Outputs
from subbit_infer.core.epilogue import ACTIVATIONS, Epilogue
from subbit_infer.core.weight import pack_indices

SHIM = Path(__file__).parent / "shim"
NO_EPILOGUE = Epilogue()
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Multiprocessors; shared memory of a block and of a multiprocessor, in bytes: compute capabilities 9.0 and 8.6, and one
# whose multiprocessors have so much that even blocks of one warp take four units at a time.
LARGE, SMALL, ROOMY = (132, 232448, 233472), (82, 101376, 102400), (132, 232448, 1 << 24)


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> ctypes.CDLL:
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler, which build the shim")
    build = tmp_path_factory.mktemp("cuda_shim")
    sanitize = "ON" if "libasan" in os.environ.get("LD_PRELOAD", "") else "OFF"  # as make sanitize has it
    configure = ["cmake", str(SHIM), "-B", str(build), f"-DSUBBIT_SANITIZE={sanitize}"]
    for command in (configure, ["cmake", "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return ctypes.CDLL(str(build / "libcuda_shim.so"))


@dataclass(frozen=True)
class Tile:
    halves: bool
    words_per_lane: int
    warps: int
    units: int
    buffers: int
    parts: int
    pixel_tiles: int
    shared_bytes: int


@dataclass
class Problem:
    """A convolution with all its tensors; ``x`` is (N, C, H, W) elements, or packed."""

    x: Tensor | PackedActivations
    indices: Tensor
    codebook: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation_bits: int = 32
    sign_zero: int = 0
    epilogue: Epilogue = NO_EPILOGUE
    float_output: bool = True
    pack_sign_zero: int | None = None  # None: no packed output
    pack_shift: Tensor | None = None
    channels_last_output: bool = False
    dtype: torch.dtype = torch.float32
    y: Tensor | None = None  # where to write, instead of memory of its own

    @property
    def geometry(self):
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        n, _, *image = self.x.shape
        reach = [self.dilation[i] * (self.codebook.shape[2 + i] - 1) + 1 for i in (0, 1)]
        out = [(image[i] + 2 * self.padding[i] - reach[i]) // self.stride[i] + 1 for i in (0, 1)]
        return n, self.indices.shape[0], out[0], out[1]

    def empty(self) -> Tensor:
        """A y full of what no result is."""
        if self.y is not None:
            return self.y.fill_(-12345)
        form = torch.channels_last if self.channels_last_output else torch.contiguous_format
        return torch.empty(self.sizes, dtype=self.dtype, memory_format=form).fill_(-12345)

    def expected(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y before it is rounded to its dtype, and the packed words, by the reference."""
        is_packed = isinstance(self.x, PackedActivations)
        x = self.x.unpack() if is_packed else self.x.float()
        e = self.epilogue
        y = reference.conv2d(
            x, self.indices, self.codebook, e.bias, *self.geometry, scale=e.scale,
            residual=None if e.residual is None else e.residual.float(), activation=e.activation, slope=e.slope,
            shift=e.shift, activation_bits=self.activation_bits, sign_zero=0 if is_packed else self.sign_zero,
        )  # fmt: skip
        return y, *self._expected_words(y)

    def _expected_words(self, y: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if self.pack_sign_zero is None else pack_signs(y, self.pack_shift, self.pack_sign_zero)

    def by_cpu_rows(self) -> Tensor:
        """y by the CPU's sharing kernel, whose order of addition the device keeps."""
        weight = PackedWeight.from_indices(self.indices, self.codebook)
        stride, padding, dilation, groups = self.geometry
        y = torch.empty(self.sizes)
        e = self.epilogue
        args = ConvArgs.of_weight(
            self.x.float(), weight, stride=stride, padding=padding, dilation=dilation, groups=groups,
            activation_bits=self.activation_bits, sign_zero=self.sign_zero, activation=e.activation, slope=e.slope,
            shift=e.shift, residual=None if e.residual is None else e.residual.float(),
        )._replace(scale=e.scale, bias=e.bias)  # fmt: skip
        assert run_kernel(prepared(weight), args, Outputs(y, None, None), self.sizes, "scalar", "rows")
        return y


def device_indices(indices: Tensor, codewords: int) -> Tensor:
    """Indices as the device reads them: the saved rows, padded to whole 32-bit words."""
    packed = pack_indices(indices, codewords)
    return torch.nn.functional.pad(packed, (0, -packed.shape[1] % 4)).contiguous()


def device_codebook(codebook: Tensor) -> Tensor:
    """Codewords as bit sets of 16 bits: bit t is 1 where tap t is +1."""
    bits = (codebook.flatten(1) > 0).to(torch.int32)
    return (bits << torch.arange(bits.shape[1])).sum(1).to(torch.int16)


class Call:
    """A problem as the library takes it; keeps its tensors alive."""

    def __init__(self, p: Problem, limits: tuple[int, int, int]) -> None:
        is_packed = isinstance(p.x, PackedActivations)
        e = p.epilogue
        self.y = p.empty() if p.float_output else None
        words = (p.sizes[0], *p.sizes[2:], word_count(p.sizes[1]))
        self.plus = torch.full(words, -1) if p.pack_sign_zero is not None else None
        self.nonzero = torch.full(words, -1) if p.pack_sign_zero == 0 else None
        strides = [
            *((0,) * 4 if is_packed else p.x.stride()),
            *((0,) * 4 if self.y is None else self.y.stride()),
            *((0,) * 4 if e.residual is None else e.residual.stride()),
        ]
        sizes = [
            int(p.codebook.shape[1] == 8), int(p.activation_bits == 1), p.sign_zero, ACTIVATIONS.index(e.activation),
            *p.x.shape, *p.sizes[1:], p.groups, *p.stride, *p.padding, *p.dilation, *strides, is_packed,
            p.float_output, self.plus is not None, DTYPES.index(p.dtype), len(p.codebook),
        ]  # fmt: skip
        tensors = [
            None if is_packed else p.x, p.x.plus if is_packed else None, p.x.nonzero if is_packed else None,
            device_indices(p.indices, len(p.codebook)), device_codebook(p.codebook), e.scale, e.bias, e.residual,
            e.slope, e.shift, self.y, self.plus, self.nonzero, p.pack_shift,
        ]  # fmt: skip
        self._tensors = tensors
        self.sizes = (ctypes.c_int64 * len(sizes))(*sizes)
        self.limits = (ctypes.c_int64 * 3)(*limits)
        self.pointers = (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))

    def tiles(self, shim: ctypes.CDLL) -> tuple[list[Tile], int]:
        """Every tile that fits, each kind once, and the place of the planned one."""
        found = (ctypes.c_int64 * 200)()
        count = shim.subbit_sharing_tiles(self.sizes, self.limits, found)
        tiles = [Tile(*found[8 * i : 8 * i + 8]) for i in range(count + 1)]
        return tiles[:-1], tiles.index(tiles[-1])

    def run(self, shim: ctypes.CDLL, tile: int) -> None:
        assert shim.subbit_run_sharing(self.sizes, self.limits, tile, self.pointers) == 0


def check(shim: ctypes.CDLL, p: Problem, *, limits: tuple[int, int, int] = LARGE, every_tile: bool = False) -> None:
    """Runs the problem, with the planned tile or with each, and compares every bit."""
    y, plus, nonzero = p.expected()
    tiles, planned = Call(p, limits).tiles(shim)
    chosen = {t: i for i, t in reversed(list(enumerate(tiles)))}.values() if every_tile else [planned]
    for i in chosen:
        call = Call(p, limits)
        call.run(shim, i)
        if call.y is not None:
            torch.testing.assert_close(
                call.y, y.to(p.dtype), rtol=0, atol=0, equal_nan=True, msg=lambda m, t=tiles[i]: f"{t}\n{m}"
            )
        if call.plus is not None:
            assert torch.equal(call.plus, plus), tiles[i]
        if call.nonzero is not None:
            assert torch.equal(call.nonzero, nonzero), tiles[i]


def problem(
    unit, in_channels, out_channels, codewords, size=(1, 5, 7), *, groups=1, seed=0, x=None, **options
) -> Problem:
    indices, codebook = random_weight(unit, out_channels, in_channels // groups // unit[0], codewords, seed)
    if x is None:
        x = integers(size[0], in_channels, *size[1:], seed=seed).to(options.get("dtype", torch.float32))
    return Problem(x, indices, codebook, groups=groups, **options)


def vector(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def everything(p: Problem, activation: str) -> Problem:
    """With every part of the epilogue, whose values are not integers, and both outputs."""
    n = p.sizes[1]
    residual = torch.randn(p.sizes, generator=torch.Generator().manual_seed(5)).to(p.dtype)
    slope = vector(n, 3) if activation == "prelu" else None
    epilogue = Epilogue(vector(n, 1), vector(n, 2), residual, activation, slope, vector(n, 4))
    return replace(p, epilogue=epilogue, pack_sign_zero=0, pack_shift=vector(n, 6))


def packed(x: Tensor, sign_zero: int) -> PackedActivations:
    return PackedActivations(*pack_signs(x, None, sign_zero), x.shape[1])


# Codewords on both sides of powers of two, and each tau.
@pytest.mark.parametrize("codewords", [1, 2, 3, 4, 5, 8, 9, 16, 31, 33, 64, 100, 128, 129, 256])
@pytest.mark.parametrize(("unit", "channels"), [(UNIT_3X3, 5), (UNIT_1X1, 40)])
@pytest.mark.parametrize("activation_bits", [32, 1])
def test_codewords(shim, unit, channels, codewords, activation_bits):
    padding = (1, 1) if unit == UNIT_3X3 else (0, 0)
    check(shim, problem(unit, channels, 20, codewords, activation_bits=activation_bits, padding=padding))


@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("codewords", [1, 6, 32, 200])
@pytest.mark.parametrize(("unit", "channels"), [(UNIT_3X3, 7), (UNIT_1X1, 56)])
@pytest.mark.parametrize("limits", [LARGE, SMALL, ROOMY], ids=["large", "small", "roomy"])
def test_every_tile(shim, unit, channels, codewords, activation_bits, limits):
    # 273 outputs and 198 pixels: several blocks of each in the smallest tiles, and odd ends.
    p = problem(unit, channels, 273, codewords, (2, 11, 9), activation_bits=activation_bits, padding=(1, 1))
    check(shim, p if unit == UNIT_3X3 else replace(p, padding=(0, 0)), limits=limits, every_tile=True)


def test_tiles_have_one_buffer_where_two_do_not_fit(shim):
    p = problem(UNIT_3X3, 3, 40, 256, (1, 6, 6), padding=(1, 1))
    tiles, _ = Call(p, SMALL).tiles(shim)
    assert {t.buffers for t in tiles} == {1}
    assert all(t.shared_bytes <= SMALL[1] for t in tiles)
    check(shim, p, limits=SMALL, every_tile=True)


@pytest.mark.parametrize("in_channels", [1, 2, 3, 4, 5, 8, 9, 12, 33])
@pytest.mark.parametrize("codewords", [2, 5, 100, 256])
def test_units_that_end_within_a_block_of_units(shim, in_channels, codewords):
    check(shim, problem(UNIT_3X3, in_channels, 17, codewords, padding=(1, 1)))


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
def test_geometry_of_3x3(shim, geometry, activation_bits, groups):
    check(shim, problem(UNIT_3X3, 6, 33, 20, (2, 9, 8), groups=groups, activation_bits=activation_bits, **geometry))


@pytest.mark.parametrize(
    "geometry", [{"stride": (2, 3)}, {"padding": (1, 2)}, {"stride": (2, 2), "padding": (3, 0)}], ids=str
)
@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("groups", [1, 2])
def test_geometry_of_1x1(shim, geometry, activation_bits, groups):
    check(shim, problem(UNIT_1X1, 48, 34, 20, (2, 9, 8), groups=groups, activation_bits=activation_bits, **geometry))


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 300), (3, 7, 7), (300, 1, 1), (1, 17, 31)])
@pytest.mark.parametrize("out_channels", [1, 15, 16, 17, 64, 257, 600])
def test_sizes(shim, size, out_channels):
    check(shim, problem(UNIT_3X3, 2, out_channels, 9, size, padding=(1, 1)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("activation_bits", [32, 1])
def test_epilogue_and_outputs_of_every_dtype(shim, dtype, unit, activation, activation_bits):
    p = problem(unit, 16, 70, 32, (2, 4, 5), dtype=dtype, activation_bits=activation_bits)
    check(shim, everything(p, activation))


@pytest.mark.parametrize("groups", [1, 2, 5])
@pytest.mark.parametrize("group_outputs", [8, 16, 48, 64, 67])
@pytest.mark.parametrize("pack_sign_zero", [0, 1])
@pytest.mark.parametrize("float_output", [True, False])
def test_packed_output(shim, groups, group_outputs, pack_sign_zero, float_output):
    """Groups begin anywhere in a word; small integer sums leave many zeros."""
    x = integers(2, 2 * groups, 5, 7).clamp(-1, 1)
    p = problem(UNIT_3X3, 2 * groups, group_outputs * groups, 9, x=x, groups=groups, padding=(1, 1))
    p = replace(p, pack_sign_zero=pack_sign_zero, float_output=float_output)
    check(shim, p, every_tile=group_outputs == 67)


@pytest.mark.parametrize("sign_zero", [0, 1])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("unit", "channels"), [(UNIT_3X3, 70), (UNIT_1X1, 80), (UNIT_3X3, 130)])
def test_packed_input(shim, sign_zero, groups, unit, channels):
    x = packed(integers(2, channels, 5, 6).clamp(-2, 2), sign_zero)
    p = problem(unit, channels, 20, 32, x=x, groups=groups, activation_bits=1)
    check(shim, p if unit == UNIT_1X1 else replace(p, padding=(1, 1), stride=(2, 1)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign_zero", [0, 1])
def test_signs_of_zeros_and_padding(shim, dtype, sign_zero):
    x = integers(1, 6, 7, 9).clamp(-1, 1).to(dtype)
    x[0, 0, 0] = -0.0
    check(shim, problem(UNIT_3X3, 6, 10, 16, x=x, dtype=dtype, activation_bits=1, sign_zero=sign_zero, padding=(2, 2)))


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
def test_strides(shim, dtype, activation_bits, form, unit):
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
    check(shim, replace(p, x=x, epilogue=replace(p.epilogue, residual=residual), channels_last_output=True))


def far_apart(*shape: int) -> Tensor:
    """A float16 tensor whose images and channels are more than 2^31 elements apart, in memory that is not all there."""
    strides = (shape[1] * (2**31 + 8), 2**31 + 8, shape[3], 1)
    elements = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
    no_reserve = 0x4000  # MAP_NORESERVE of Linux, which Python does not name
    memory = mmap.mmap(-1, 2 * elements, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    return torch.frombuffer(memory, dtype=torch.float16, count=elements).as_strided(shape, strides)


@pytest.mark.parametrize("activation_bits", [32, 1])
def test_offsets_beyond_2_to_the_31(shim, activation_bits):
    x, y, residual = far_apart(2, 2, 4, 5), far_apart(2, 3, 4, 5), far_apart(2, 3, 4, 5)
    x.copy_(integers(*x.shape))
    residual.copy_(integers(*y.shape, seed=1))
    p = problem(UNIT_3X3, 2, 3, 9, x=x, dtype=torch.float16, activation_bits=activation_bits, padding=(1, 1))
    check(shim, replace(p, y=y, epilogue=Epilogue(residual=residual)))


@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("units", [3639, 3640, 3641, 7000])
def test_more_units_than_16_bits_hold(shim, activation_bits, units):
    """All signs agree somewhere, so that sums reach 9 a unit; beyond 3640 units they run as floats."""
    x = torch.ones(1, units, 3, 3)
    x[..., 2] = -1
    p = problem(UNIT_3X3, units, 2, 1, x=x, activation_bits=activation_bits, padding=(1, 1))
    for sign in (1, -1):
        p = replace(p, codebook=torch.full((1, 1, 3, 3), float(sign)))
        tiles, planned = Call(p, LARGE).tiles(shim)
        assert tiles[planned].halves == (activation_bits == 1 and units <= 3640)
        check(shim, p)


@pytest.mark.parametrize("codewords", [3, 32, 256])
@pytest.mark.parametrize(("unit", "channels"), [(UNIT_3X3, 37), (UNIT_1X1, 72)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("every_part", [False, True])
def test_floats_have_the_bits_of_the_cpu_kernel(shim, codewords, unit, channels, dtype, every_part):
    x = torch.randn(2, channels, 6, 7, generator=torch.Generator().manual_seed(7)).to(dtype)
    p = problem(unit, channels, 40, codewords, x=x, dtype=dtype)
    p = everything(p, "prelu") if every_part else p
    tiles, _ = Call(p, LARGE).tiles(shim)
    expected = p.by_cpu_rows()
    for i in {t.words_per_lane: i for i, t in enumerate(tiles)}.values():
        call = Call(p, LARGE)
        call.run(shim, i)
        assert torch.equal(call.y.view(torch.uint8), expected.to(dtype).view(torch.uint8)), tiles[i]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_finite(shim, value, dtype, unit, activation):
    """It reaches its receptive field and nothing else, and packs as torch has it."""
    x = integers(1, 8, 6, 7).to(dtype)
    x[0, 3, 2, 4] = value
    p = problem(unit, 8, 12, 16, x=x, dtype=dtype)
    epilogue = Epilogue(activation=activation, slope=vector(12, 1) if activation == "prelu" else None)
    check(shim, replace(p, epilogue=epilogue, pack_sign_zero=0))


def test_not_a_number_has_no_sign(shim):
    x = integers(1, 8, 6, 7)
    x[0, 3, 2, 4] = torch.nan
    check(shim, problem(UNIT_3X3, 8, 12, 16, x=x, activation_bits=1))


def test_half_overflows_to_infinity(shim):
    x = torch.full((1, 8, 3, 3), 60000.0, dtype=torch.float16)
    check(shim, problem(UNIT_3X3, 8, 12, 16, x=x, dtype=torch.float16))


def test_codewords_that_are_the_same(shim):
    p = problem(UNIT_3X3, 5, 12, 6, padding=(1, 1))
    check(shim, replace(p, codebook=p.codebook[torch.tensor([0, 1, 1, 0, 4, 4])]))


@pytest.mark.parametrize(
    ("channels", "size", "expected"),
    [(64, 56, (4, 4, 1)), (128, 28, (4, 8, 1)), (256, 14, (4, 16, 1)), (512, 7, (2, 8, 2))],
)
def test_planned_tiles_of_resnet_18(shim, channels, size, expected):
    """At batch 256 and tau 5, on 132 multiprocessors: what arithmetic expects (csrc/cuda/sharing/sharing_tile.cpp)."""
    x = torch.zeros(1).expand(256, channels, size, size)  # without memory of its own
    p = problem(UNIT_3X3, channels, channels, 32, x=x, padding=(1, 1), float_output=False)
    tiles, planned = Call(p, LARGE).tiles(shim)
    tile = tiles[planned]
    assert (tile.words_per_lane, tile.warps, tile.parts) == expected
    assert tile.buffers == 2
    assert tile.shared_bytes <= LARGE[1]
    assert tile.pixel_tiles == -(-256 * size * size // (32 * tile.words_per_lane))


@pytest.mark.parametrize("limits", [LARGE, SMALL, (108, 166912, 167936)], ids=["9.0", "8.6", "8.0"])
@pytest.mark.parametrize("codewords", [2, 31, 64, 129, 256])
@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
def test_tiles_fit_and_cover_the_outputs(shim, limits, codewords, activation_bits, unit):
    for outputs in (1, 16, 33, 100, 256, 257, 1000):
        p = problem(unit, 64, outputs, codewords, activation_bits=activation_bits, float_output=False)
        tiles, planned = Call(p, limits).tiles(shim)
        assert 0 <= planned < len(tiles)
        for t in tiles:
            of_block = t.warps * 64 // t.words_per_lane
            assert t.shared_bytes <= limits[1]
            assert (t.parts - 1) * of_block < outputs <= t.parts * of_block
            assert 1 <= t.warps <= 16
            assert t.halves == (activation_bits == 1)


def test_small_problems_spread_over_the_device(shim):
    p = problem(UNIT_3X3, 512, 512, 32, (1, 7, 7), padding=(1, 1), float_output=False)
    tiles, planned = Call(p, LARGE).tiles(shim)
    assert tiles[planned].parts * tiles[planned].pixel_tiles >= 4
