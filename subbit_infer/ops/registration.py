"""The torch.library operators: ``conv2d``, ``conv2d_packed``, and those that pack, unpack and decode.

The convolutions run compiled kernels for 1x3x3 and 8x1x1 units, on the CPU and, where they are built, on CUDA devices;
and the reference for every other unit and device. The operators check what they are given; ``ops`` is what people call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from subbit_infer.core import codebook as codebook_module
from subbit_infer.core.activations import check_words, unpack_signs, word_count
from subbit_infer.core.conv_args import FLOATS, ConvArgs, Outputs
from subbit_infer.core.weight import check_channel_vector, decode_packed, pack_codebook, pack_indices
from subbit_infer.ops.execution import convolve, pack
from subbit_infer.ops.gradients import backward, no_backward, setup_context

_ARGUMENTS = (
    "Tensor x, Tensor packed_indices, Tensor packed_codebook, Tensor? scale, Tensor? bias, Tensor? residual, "
    "Tensor? slope, Tensor? shift, str activation, int[2] stride, int[2] padding, int[2] dilation, int groups, "
    "int units, int codewords, int[3] unit, int activation_bits, int sign_zero"
)
_PACKED_ARGUMENTS = "Tensor? x_nonzero, Tensor? pack_shift, int pack_sign_zero, bool float_output, bool packed_output"

_library = torch.library.Library("subbit_infer", "DEF")
for _schema in (
    f"conv2d({_ARGUMENTS}) -> Tensor",
    # x is floats, or the words `plus`; what is not asked for comes back empty.
    f"conv2d_packed({_ARGUMENTS}, {_PACKED_ARGUMENTS}) -> (Tensor y, Tensor plus, Tensor nonzero)",
    "pack(Tensor x, Tensor? shift, int sign_zero) -> (Tensor plus, Tensor nonzero)",
    "unpack(Tensor plus, Tensor? nonzero, int channels) -> Tensor",
    "decode(Tensor packed_indices, Tensor packed_codebook, int units, int codewords, int[3] unit) -> Tensor",
    "pack_indices(Tensor indices, int codewords) -> Tensor",
    "pack_codebook(Tensor codebook) -> Tensor",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def _conv2d(*arguments: Any) -> Tensor:
    y = convolve(ConvArgs(*arguments), packed=False)[0].y
    assert y is not None
    return y


def _conv2d_packed(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    args = ConvArgs(*arguments)
    return _or_empty(args, convolve(args, packed=True)[0])


@torch.library.register_fake("subbit_infer::conv2d", lib=_library)
def _conv2d_fake(*arguments: Any) -> Tensor:
    args = ConvArgs(*arguments)
    return args.empty(args.check())


def _or_empty(args: ConvArgs, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
    """An operator returns tensors only: empty ones for what was not asked for."""
    y, plus, nonzero = outputs
    y = args.x.new_empty(0, dtype=args.dtype) if y is None else y
    plus = args.x.new_empty(0, dtype=torch.int64) if plus is None else plus
    return y, plus, args.x.new_empty(0, dtype=torch.int64) if nonzero is None else nonzero


@torch.library.register_fake("subbit_infer::conv2d_packed", lib=_library)
def _conv2d_packed_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    args = ConvArgs(*arguments)
    sizes = args.check(packed=True)
    words = args.empty_words(sizes) if args.packed_output else (None, None)
    return _or_empty(args, Outputs(args.empty(sizes) if args.float_output else None, *words))


def _check_pack(x: Tensor, shift: Tensor | None, sign_zero: int) -> None:
    if x.dtype not in FLOATS or x.dim() != 4 or x.shape[1] < 1:
        raise TypeError(
            f"x must be (N, C, H, W) of float32, float16 or bfloat16 with C >= 1, got {x.dtype} {tuple(x.shape)}"
        )
    check_channel_vector("shift", shift, x.shape[1])
    if sign_zero not in (0, 1):
        raise ValueError(f"sign_zero must be 0 or 1, got {sign_zero}")


def _pack(x: Tensor, shift: Tensor | None, sign_zero: int) -> tuple[Tensor, Tensor]:
    _check_pack(x, shift, sign_zero)
    plus, nonzero = pack(x, shift, sign_zero)
    return plus, plus.new_empty(0) if nonzero is None else nonzero


@torch.library.register_fake("subbit_infer::pack", lib=_library)
def _pack_fake(x: Tensor, shift: Tensor | None, sign_zero: int) -> tuple[Tensor, Tensor]:
    _check_pack(x, shift, sign_zero)
    batch, channels, height, width = x.shape
    plus = x.new_empty((batch, height, width, word_count(channels)), dtype=torch.int64)
    return plus, plus.new_empty(0) if sign_zero else torch.empty_like(plus)


def _unpack(plus: Tensor, nonzero: Tensor | None, channels: int) -> Tensor:
    check_words(plus, nonzero, channels)
    return unpack_signs(plus, nonzero, channels)


@torch.library.register_fake("subbit_infer::unpack", lib=_library)
def _unpack_fake(plus: Tensor, nonzero: Tensor | None, channels: int) -> Tensor:
    check_words(plus, nonzero, channels)
    return plus.new_empty((*plus.shape[:3], channels), dtype=torch.float32).permute(0, 3, 1, 2)


@torch.library.register_fake("subbit_infer::decode", lib=_library)
def _decode_fake(
    packed_indices: Tensor, packed_codebook: Tensor, units: int, codewords: int, unit: Sequence[int]
) -> Tensor:
    g, kh, kw = unit
    return packed_indices.new_empty((packed_indices.shape[0], units * g, kh, kw), dtype=torch.float32)


@torch.library.register_fake("subbit_infer::pack_indices", lib=_library)
def _pack_indices_fake(indices: Tensor, codewords: int) -> Tensor:
    out_channels, units = indices.shape
    return indices.new_empty((out_channels, (units * codebook_module.tau_of(codewords) + 7) // 8), dtype=torch.uint8)


@torch.library.register_fake("subbit_infer::pack_codebook", lib=_library)
def _pack_codebook_fake(codebook: Tensor) -> Tensor:
    return codebook.new_empty(((codebook.numel() + 7) // 8,), dtype=torch.uint8)


_library.impl("conv2d", _conv2d, "CompositeExplicitAutograd")
_library.impl("conv2d_packed", _conv2d_packed, "CompositeExplicitAutograd")
_library.impl("pack", _pack, "CompositeExplicitAutograd")
_library.impl("unpack", _unpack, "CompositeExplicitAutograd")
_library.impl("decode", decode_packed, "CompositeExplicitAutograd")
_library.impl("pack_indices", pack_indices, "CompositeExplicitAutograd")
_library.impl("pack_codebook", pack_codebook, "CompositeExplicitAutograd")

torch.library.register_autograd("subbit_infer::conv2d", backward, setup_context=setup_context, lib=_library)
torch.library.register_autograd("subbit_infer::conv2d_packed", no_backward, lib=_library)
