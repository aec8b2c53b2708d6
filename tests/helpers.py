"""What several test files need: random weights, an oracle of their own, guarded memory."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import torch
import torch.nn.functional as F

from subbit_infer import PackedWeight
from subbit_infer.backends import cpu, native
from subbit_infer.backends.executable import addresses
from subbit_infer.core.conv_args import ConvArgs, OutputLayout, Outputs

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"
LEVELS = ("scalar", "avx2", "avx512", "avx512vbmi")
MACHINE_LEVELS = LEVELS[: LEVELS.index(native.machine_level()) + 1]
UNIT_3X3 = (1, 3, 3)
UNIT_1X1 = (8, 1, 1)


def random_weight(
    unit: tuple[int, int, int], out_channels: int, units: int, codewords: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (C_out, units) and a codebook (K, *unit) of distinct codewords, drawn without subbit_infer."""
    generator = torch.Generator().manual_seed(seed)
    taps = unit[0] * unit[1] * unit[2]
    numbers = torch.randperm(1 << taps, generator=generator)[:codewords]
    bits = (numbers[:, None] >> torch.arange(taps)) & 1
    codebook = (bits * 2.0 - 1).reshape(codewords, *unit)
    return torch.randint(0, codewords, (out_channels, units), generator=generator), codebook


def prepared(weight: PackedWeight) -> cpu.Prepared:
    """The weight as the CPU's kernels read it."""
    return cpu.prepare(weight.packed_indices, weight.packed_codebook, weight.units, weight.codewords, weight.unit)


def run_kernel(
    weight: cpu.Prepared, args: ConvArgs, outputs: Outputs, sizes: tuple[int, ...], level: str | None, plan: str
) -> bool:
    """Runs a compiled convolution into the test's own memory; whether the plan has one."""
    y, plus, nonzero = outputs
    strides = None if y is None else y.stride()
    words = None if plus is None else tuple(plus.shape)
    layout = OutputLayout(tuple(sizes), torch.float32, strides, words, nonzero is not None)
    launch = cpu.plan(weight, args, layout, level=level, plan=plan).launch
    if launch is None:
        return False
    launch(*addresses(args, outputs))
    return True


def dense_weight(indices: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """(C_out, units * g, kh, kw), looked up one by one as its definition says."""
    g, kh, kw = codebook.shape[1:]
    return codebook[indices.long()].reshape(indices.shape[0], indices.shape[1] * g, kh, kw)


def signs(x: torch.Tensor, sign_zero: int) -> torch.Tensor:
    return torch.where(x >= 0, 1.0, -1.0) if sign_zero else x.sign()


def expected_conv(x, indices, codebook, *, activation_bits=32, sign_zero=0, scale=None, bias=None, **options):
    """The result by F.conv2d in float64."""
    x = signs(x, sign_zero) if activation_bits == 1 else x
    y = F.conv2d(x.double(), dense_weight(indices, codebook).double(), **options)
    if scale is not None:
        y = y * scale.double()[:, None, None]
    return y if bias is None else y + bias.double()[:, None, None]


def integers(*shape: int, seed: int = 0) -> torch.Tensor:
    """Floats that are integers in [-8, 8], zeros among them: every order of addition gives the same sum."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).float()


class GuardedFloats:
    """A float32 tensor whose last (or first) byte lies against a page that cannot be read or written."""

    def __init__(self, *shape: int, at_end: bool = True) -> None:
        page = mmap.PAGESIZE
        nbytes = 4 * max(1, int(torch.tensor(shape).prod()))
        inner = -(-nbytes // page) * page
        self._map = mmap.mmap(-1, inner + 2 * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (base, base + page + inner):
            assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
        offset = page + (inner - nbytes if at_end else 0)
        flat = torch.frombuffer(memoryview(self._map), dtype=torch.float32, count=nbytes // 4, offset=offset)
        self.tensor = flat[: int(torch.tensor(shape).prod())].view(shape)
