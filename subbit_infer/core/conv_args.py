"""One call of a convolution operator: its arguments, in the order of the schemas, and what must hold between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from subbit_infer.core.activations import check_words, unpack_signs, word_count
from subbit_infer.core.epilogue import Epilogue
from subbit_infer.core.weight import PackedWeight, check_channel_vector, decode_packed

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


Sizes = tuple[int, int, int, int]
"""(N, C_out, H_out, W_out) of a result."""


class Outputs(NamedTuple):
    """The results of a convolution, None for what was not asked for.

    Attributes:
        y: floats, (N, C_out, H_out, W_out).
        plus: the words of a packed result, (N, H_out, W_out, ceil(C_out / 64)).
        nonzero: of the same shape; None also where zeros count as +1.
    """

    y: Tensor | None
    plus: Tensor | None
    nonzero: Tensor | None


class OutputLayout(NamedTuple):
    """What memory the results take.

    Attributes:
        sizes: (N, C_out, H_out, W_out).
        dtype: of y.
        strides: of y; None where no floats are asked for.
        words: the shape of packed results; None where none are asked for.
        has_nonzero: whether packed results have the words ``nonzero``.
    """

    sizes: Sizes
    dtype: torch.dtype
    strides: Sizes | None
    words: Sizes | None
    has_nonzero: bool

    def empty(self, device: torch.device) -> Outputs:
        """The memory."""
        y = plus = nonzero = None
        if self.strides is not None:
            y = torch.empty_strided(self.sizes, self.strides, dtype=self.dtype, device=device)
        if self.words is not None:
            plus = torch.empty(self.words, dtype=torch.int64, device=device)
            nonzero = torch.empty_like(plus) if self.has_nonzero else None
        return Outputs(y, plus, nonzero)


class ConvArgs(NamedTuple):
    """The arguments of the operator ``conv2d``, and after them those that only ``conv2d_packed`` has.

    Everything between ``conv`` and the kernels takes a convolution as one of these. A tuple and not a dataclass,
    because making one is part of every call that is not a repetition (0.5 us against 2).
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

    @classmethod
    def of_weight(
        cls,
        x: Tensor,
        weight: PackedWeight,
        *,
        x_nonzero: Tensor | None = None,
        residual: Tensor | None = None,
        activation: str = "none",
        slope: Tensor | None = None,
        shift: Tensor | None = None,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        activation_bits: int = 32,
        sign_zero: int = 0,
        pack_shift: Tensor | None = None,
        pack_sign_zero: int = 0,
        float_output: bool = True,
        packed_output: bool = False,
    ) -> ConvArgs:
        """A convolution with a packed weight, its scale and its bias."""
        return cls(
            x, weight.packed_indices, weight.packed_codebook, weight.scale, weight.bias, residual, slope, shift,
            activation, stride, padding, dilation, groups, weight.units, weight.codewords, weight.unit, activation_bits,
            sign_zero, x_nonzero, pack_shift, pack_sign_zero, float_output, packed_output,
        )  # fmt: skip

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
    def epilogue_commutes_with_rounding(self) -> bool:
        """Whether sums may be rounded to the result's dtype before the epilogue, without changing the result."""
        follows = self.scale, self.bias, self.residual, self.shift
        is_exact = self.activation in ("none", "relu", "hardtanh") and not self.packed_output
        return is_exact and all(t is None for t in follows)

    @property
    def vectors(self) -> tuple[Tensor | None, ...]:
        """Scale, bias, slope, shift and pack_shift: what has a value per output channel."""
        return self.scale, self.bias, self.slope, self.shift, self.pack_shift

    @property
    def epilogue(self) -> Epilogue:
        """What is done to the sums."""
        return Epilogue(self.scale, self.bias, self.residual, self.activation, self.slope, self.shift)

    def float_x(self) -> Tensor:
        """X as float32 (N, C_in, H, W), unpacked if it is words."""
        return unpack_signs(self.x, self.x_nonzero, self.in_channels) if self.is_packed else self.x.to(torch.float32)

    def decoded(self) -> Tensor:
        """The dense weight without scale, float32 (C_out, C_in / groups, kh, kw) of +-1."""
        return decode_packed(self.packed_indices, self.packed_codebook, self.units, self.codewords, self.unit)

    def check(self, packed: bool = False) -> Sizes:
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

    def _check_epilogue(self, sizes: Sizes) -> None:
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

    def empty(self, sizes: Sizes) -> Tensor:
        """Memory for a float result."""
        return torch.empty(sizes, dtype=self.dtype, device=self.x.device, memory_format=self.memory_format)

    def empty_words(self, sizes: Sizes) -> tuple[Tensor, Tensor | None]:
        """Memory for the words of a packed result: ``plus``, and ``nonzero`` if there may be zeros."""
        batch, channels, height, width = sizes
        shape = (batch, height, width, word_count(channels))
        plus = torch.empty(shape, dtype=torch.int64, device=self.x.device)
        return plus, None if self.pack_sign_zero else torch.empty_like(plus)

    def output_layout(self, sizes: Sizes) -> OutputLayout:
        """What memory the results take; numbers only, no symbols of a graph."""
        batch, channels, height, width = sizes
        c, h, w = max(channels, 1), max(height, 1), max(width, 1)
        strides = words = None
        if self.float_output:
            is_last = self.memory_format == torch.channels_last
            strides = (h * w * c, 1, w * c, c) if is_last else (c * h * w, h * w, w, 1)
        if self.packed_output:
            words = batch, height, width, word_count(channels)
        return OutputLayout(sizes, self.dtype, strides, words, self.packed_output and not self.pack_sign_zero)


_SHARED = ConvArgs._fields.index("x_nonzero")
