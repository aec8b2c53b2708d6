"""Convolutions for the sharing kernel under the host shim, and calls of them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import torch
from helpers import integers, prepared, random_weight, run_kernel
from torch import Tensor

from subbit_infer import PackedWeight
from subbit_infer.core import reference
from subbit_infer.core.activations import PackedActivations, pack_signs, word_count
from subbit_infer.core.conv_args import ConvArgs, Outputs
from subbit_infer.core.epilogue import ACTIVATIONS, Epilogue
from subbit_infer.core.weight import pack_indices

NO_EPILOGUE = Epilogue()
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Multiprocessors; shared memory of a block and of a multiprocessor, in bytes: compute capabilities 9.0 and 8.6, and one
# whose multiprocessors have so much that even blocks of one warp take four units at a time.
LARGE, SMALL, ROOMY = (132, 232448, 233472), (82, 101376, 102400), (132, 232448, 1 << 24)


@dataclass(frozen=True)
class Tile:
    two_per_word: bool
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

    def tiles(self, sharing_shim: ctypes.CDLL) -> tuple[list[Tile], int]:
        """Every tile that fits, each kind once, and the place of the planned one."""
        found = (ctypes.c_int64 * 200)()
        count = sharing_shim.subbit_sharing_tiles(self.sizes, self.limits, found)
        tiles = [Tile(*found[8 * i : 8 * i + 8]) for i in range(count + 1)]
        return tiles[:-1], tiles.index(tiles[-1])

    def run(self, sharing_shim: ctypes.CDLL, tile: int) -> None:
        assert sharing_shim.subbit_run_sharing(self.sizes, self.limits, tile, self.pointers) == 0


def check(
    sharing_shim: ctypes.CDLL, p: Problem, *, limits: tuple[int, int, int] = LARGE, every_tile: bool = False
) -> None:
    """Runs the problem, with the planned tile or with each, and compares every bit."""
    y, plus, nonzero = p.expected()
    tiles, planned = Call(p, limits).tiles(sharing_shim)
    chosen = {t: i for i, t in reversed(list(enumerate(tiles)))}.values() if every_tile else [planned]
    for i in chosen:
        call = Call(p, limits)
        call.run(sharing_shim, i)
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
