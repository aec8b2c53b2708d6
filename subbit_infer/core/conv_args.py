"""One call of a convolution operator: its arguments, in the order of the schemas, and what must hold between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from subbit_infer.core.activations import check_words, unpack_signs, word_count
from subbit_infer.core.epilogue import Epilogue
from subbit_infer.core.weight import check_channel_vector

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def is_bare(activation: str, packs: bool, *follows: Tensor | None) -> bool:
    """Whether neither what follows (scale, bias, residual, shift), nor the activation, nor packing hinders rounding."""
    return activation in ("none", "relu", "hardtanh") and not packs and all(t is None for t in follows)


class Call(NamedTuple):
    """The arguments of ``conv2d``, and after them those that only ``conv2d_packed`` has.

    A tuple and not a dataclass, because making one is part of every call (0.5 us against 2).
    """

    x: Tensor
    packed_indices: Tensor
    packed_codebook: Tensor
    scale: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    slope: Tensor | None
    shift: Tensor | None
    activation: str
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    units: int
    codewords: int
    unit: Sequence[int]
    activation_bits: int
    sign_zero: int
    x_nonzero: Tensor | None = None
    pack_shift: Tensor | None = None
    pack_sign_zero: int = 0
    float_output: bool = True
    packed_output: bool = False

    @property
    def of_conv2d(self) -> tuple[Any, ...]:
        """The arguments that ``conv2d`` has."""
        return self[:_SHARED]

    @property
    def in_channels(self) -> int:
        """C_in, as the weight has it."""
        return self.units * self.unit[0] * self.groups

    @property
    def is_packed(self) -> bool:
        """Whether x is words of activations."""
        return self.x.dtype == torch.int64

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of a float result."""
        return torch.float32 if self.is_packed else self.x.dtype

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of a float result: channels_last where x's strides are in that order, as in ``F.conv2d``."""
        if self.is_packed:
            return torch.channels_last  # the order that the words are in
        if self.x.is_contiguous():
            return torch.contiguous_format
        if self.x.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        return suggest_memory_format(self.x)

    @property
    def is_bare(self) -> bool:
        """Whether nothing follows the sums but what rounding them to the result's dtype first does not change."""
        return is_bare(self.activation, self.packed_output, self.scale, self.bias, self.residual, self.shift)

    @property
    def epilogue(self) -> Epilogue:
        """What is done to the sums."""
        return Epilogue(self.scale, self.bias, self.residual, self.activation, self.slope, self.shift)

    def float_x(self) -> Tensor:
        """X as float32 (N, C_in, H, W), unpacked if it is words."""
        return unpack_signs(self.x, self.x_nonzero, self.in_channels) if self.is_packed else self.x.to(torch.float32)

    def check(self, packed: bool = False) -> tuple[int, int, int, int]:
        """Checks everything but the values that tensors hold.

        Args:
            packed: whether the operator is ``conv2d_packed``.

        Returns:
            The sizes of the result, (N, C_out, H_out, W_out).

        Raises:
            TypeError, ValueError: naming the argument, the rule and the value given.
        """
        packed_indices = self.packed_indices
        if packed_indices.dtype != torch.uint8 or packed_indices.dim() != 2:
            raise TypeError(
                f"packed_indices must be uint8 of 2 dimensions, got {packed_indices.dtype} of {packed_indices.dim()}"
            )
        out_channels = packed_indices.shape[0]
        if self.groups < 1 or out_channels % self.groups != 0:
            raise ValueError(f"groups must be at least 1 and divide C_out = {out_channels}, got {self.groups}")
        if packed and self.is_packed:
            if self.activation_bits != 1:
                raise ValueError(f"activation_bits must be 1 where x is packed, got {self.activation_bits}")
            check_words(self.x, self.x_nonzero, self.in_channels)
            batch, height, width = self.x.shape[:3]
        else:
            if self.x.dtype not in FLOATS or self.x.dim() != 4:
                raise TypeError(
                    f"x must be float32, float16 or bfloat16 of 4 dimensions, got {self.x.dtype} of {self.x.dim()}"
                )
            if self.activation_bits not in (1, 32):
                raise ValueError(f"activation_bits must be 1 or 32, got {self.activation_bits}")
            if self.x_nonzero is not None:
                raise ValueError(f"x_nonzero must be None where x is not packed, got one beside x of {self.x.dtype}")
            batch, channels, height, width = self.x.shape
            if channels != self.in_channels:
                raise ValueError(
                    f"x must have C_in = {self.in_channels} channels ({self.units} units of {self.unit[0]} in "
                    f"{self.groups} groups), got {channels}"
                )
        sizes = batch, out_channels, *self._checked_out_sizes(height, width)
        # No address space holds 2^45 floats: refused before anything is allocated. (Sizes may be symbols of a graph.)
        elements = sizes[0] * sizes[1] * sizes[2] * sizes[3]
        if type(elements) is int and elements > 2**45:
            raise ValueError(f"the output must have at most 2^45 elements, it would have sizes {sizes}")
        self._check_epilogue(sizes)
        self._check_devices()
        return sizes

    def _checked_out_sizes(self, height: int, width: int) -> tuple[int, int]:
        (sh, sw), (ph, pw), (dh, dw), (_, kh, kw) = self.stride, self.padding, self.dilation, self.unit
        if sh < 1 or sw < 1 or dh < 1 or dw < 1 or ph < 0 or pw < 0:
            raise ValueError(
                f"stride and dilation must be at least 1 and padding at least 0, got {self.stride}, {self.dilation}, "
                f"{self.padding}"
            )
        out_height = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
        out_width = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
        if out_height < 1 or out_width < 1:
            raise ValueError(
                f"x must be at least as large as the kernel: height and width {(height, width)} with padding "
                f"{(ph, pw)} do not hold a kernel {(kh, kw)} with dilation {(dh, dw)}"
            )
        return out_height, out_width

    def _check_epilogue(self, sizes: tuple[int, int, int, int]) -> None:
        if self.residual is None and self.activation == "none" and self.slope is None and self.shift is None:
            # The common case, without making an Epilogue.
            check_channel_vector("scale", self.scale, sizes[1])
            check_channel_vector("bias", self.bias, sizes[1])
        else:
            self.epilogue.check(sizes)
        check_channel_vector("pack_shift", self.pack_shift, sizes[1])
        if self.pack_sign_zero not in (0, 1):
            raise ValueError(f"pack_sign_zero must be 0 or 1, got {self.pack_sign_zero}")
        if not (self.float_output or self.packed_output):
            raise ValueError("float_output or packed_output must be True, got neither")

    def _check_devices(self) -> None:
        device = self.x.device
        for t in (*self[1:8], self.x_nonzero, self.pack_shift):
            if t is not None and t.device != device:
                names = sorted({str(device), str(t.device)})
                raise ValueError(f"x, weight, scale, bias and every other tensor must be on one device, got {names}")

    def empty(self, sizes: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
        """Memory for a float result."""
        return torch.empty(sizes, dtype=dtype, device=self.x.device, memory_format=self.memory_format)

    def empty_words(self, sizes: tuple[int, int, int, int]) -> tuple[Tensor, Tensor | None]:
        """Memory for the words of a packed result: ``plus``, and ``nonzero`` if there may be zeros."""
        batch, channels, height, width = sizes
        shape = (batch, height, width, word_count(channels))
        plus = torch.empty(shape, dtype=torch.int64, device=self.x.device)
        return plus, None if self.pack_sign_zero else torch.empty_like(plus)


_SHARED = Call._fields.index("x_nonzero")
