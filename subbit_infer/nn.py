"""Layers: SubbitConv2d and SubbitLinear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from subbit_infer import codebook as codebooks
from subbit_infer import ops
from subbit_infer.weight import PackedWeight, byte_count, check_indices, unpack_bits


class _SubbitLayer(torch.nn.Module):
    """The weight of a layer: buffers packed_indices, packed_codebook, scale and bias, and what they mean."""

    packed_indices: Tensor
    packed_codebook: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        out_channels: int,
        units: int,
        unit: tuple[int, int, int],
        codewords: int,
        *,
        scale: bool,
        bias: bool,
        activation_bits: int,
        sign_zero: int,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        if activation_bits not in (1, 32):
            raise ValueError(f"activation_bits must be 1 or 32, got {activation_bits!r}")
        if sign_zero not in (0, 1):
            raise ValueError(f"sign_zero must be 0 or 1, got {sign_zero!r}")
        if not isinstance(codewords, int) or not 1 <= codewords <= codebooks.MAX_CODEWORDS:
            raise ValueError(f"codewords must be an int from 1 to {codebooks.MAX_CODEWORDS}, got {codewords!r}")
        self.units = units
        self.unit = unit
        self.codewords = codewords
        self.activation_bits = activation_bits
        self.sign_zero = sign_zero
        g, kh, kw = unit
        row_bytes = byte_count(units * codebooks.tau_of(codewords))
        codebook_bytes = byte_count(codewords * g * kh * kw)

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.register_buffer("packed_indices", zeros(out_channels, row_bytes, dtype=torch.uint8))
        self.register_buffer("packed_codebook", zeros(codebook_bytes, dtype=torch.uint8))
        self.register_buffer("scale", zeros(out_channels, dtype=torch.float32) + 1 if scale else None)
        self.register_buffer("bias", zeros(out_channels, dtype=torch.float32) if bias else None)

    def _set_weight(self, weight: PackedWeight) -> None:
        self.packed_indices = weight.packed_indices
        self.packed_codebook = weight.packed_codebook
        self.scale = weight.scale
        self.bias = weight.bias

    @property
    def tau(self) -> int:
        """Bits of an index."""
        return codebooks.tau_of(self.codewords)

    def packed_weight(self) -> PackedWeight:
        """The layer's weight; it shares the layer's memory."""
        return PackedWeight(
            self.packed_indices, self.packed_codebook, self.units, self.codewords, self.unit, self.scale, self.bias
        )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Refuses indices that are not in the codebook, so that a bad file fails when it is loaded."""
        packed = state_dict.get(prefix + "packed_indices")
        fits = isinstance(packed, Tensor) and packed.shape == self.packed_indices.shape
        if fits and not packed.is_meta:
            try:
                if packed.dtype != torch.uint8:
                    raise ValueError(f"must be uint8, got {packed.dtype}")
                check_indices(unpack_bits(packed, self.units, self.tau), self.codewords)
            except ValueError as error:
                args[-1].append(f"{prefix}packed_indices: {error}")
                return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _weight_repr(self) -> str:
        text = f"tau={self.tau}, codewords={self.codewords}, unit={self.unit}, activation_bits={self.activation_bits}"
        if self.activation_bits == 1:
            text += f", sign_zero={self.sign_zero}"
        return text + f", scale={self.scale is not None}, bias={self.bias is not None}"


def _units(in_channels: int, groups: int, unit: tuple[int, int, int]) -> int:
    if len(unit) != 3 or min(unit) < 1:
        raise ValueError(f"unit must be three positive sizes (g, kh, kw), got {unit}")
    if in_channels < 1 or groups < 1 or in_channels % (groups * unit[0]) != 0:
        raise ValueError(
            f"in_channels must be a positive multiple of groups * g = {groups} * {unit[0]}, got {in_channels}"
        )
    return in_channels // (groups * unit[0])


class SubbitConv2d(_SubbitLayer):
    """A 2-d convolution with a sub-bit weight, in place of ``torch.nn.Conv2d``.

    Buffers (see :class:`~subbit_infer.PackedWeight`): ``packed_indices``, ``packed_codebook``, ``scale`` (C_out,) or
    None, ``bias`` (C_out,) or None. The constructor makes a layer whose indices and codebook are zero, to load a
    state_dict into; :meth:`from_dense` and :meth:`from_indices` make one that holds a weight.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        unit: (g, kh, kw), what one index names; (kh, kw) is the kernel's size.
        codewords: size of the codebook, 1 to 256.
        stride: as in ``torch.nn.Conv2d``; so are padding, dilation and groups.
        padding: int, pair, "same" or "valid".
        dilation: int or pair.
        groups: groups of channels.
        scale: whether there is a scale an output channel.
        bias: whether there is a bias.
        activation_bits: 32, or 1 to take the sign of the input.
        sign_zero: what the sign of 0 is, 0 or 1.
        device: where the buffers are; "meta" for none yet.

    Raises:
        ValueError: a size breaks a rule, naming it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        unit: tuple[int, int, int] = codebooks.UNIT_3X3,
        codewords: int = 32,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        scale: bool = True,
        bias: bool = True,
        activation_bits: int = 32,
        sign_zero: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        if out_channels < 1 or groups < 1 or out_channels % groups != 0:
            raise ValueError(f"out_channels must be a positive multiple of groups = {groups}, got {out_channels}")
        super().__init__(
            out_channels,
            _units(in_channels, groups, unit),
            unit,
            codewords,
            scale=scale,
            bias=bias,
            activation_bits=activation_bits,
            sign_zero=sign_zero,
            device=device,
        )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups

    @classmethod
    def from_packed(
        cls,
        weight: PackedWeight,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        activation_bits: int = 32,
        sign_zero: int = 0,
    ) -> SubbitConv2d:
        """A layer that holds a packed weight."""
        layer = cls(
            weight.units * weight.unit[0] * groups,
            weight.out_channels,
            weight.unit,
            weight.codewords,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            activation_bits=activation_bits,
            sign_zero=sign_zero,
            device="meta",
        )
        layer._set_weight(weight)
        return layer

    @classmethod
    def from_indices(
        cls,
        indices: Tensor,
        codebook: Tensor,
        *,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        **options: Any,
    ) -> SubbitConv2d:
        """A layer from indices (C_out, C_in / groups / g) and a codebook (K, g, kh, kw).

        ``options`` are those of :meth:`from_packed`; errors those of :meth:`PackedWeight.from_indices`.
        """
        return cls.from_packed(PackedWeight.from_indices(indices, codebook, scale, bias), **options)

    @classmethod
    def from_dense(
        cls, conv: torch.nn.Conv2d, *, tau: int | None = None, activation_bits: int = 32, sign_zero: int = 0
    ) -> SubbitConv2d:
        """A layer that computes what ``conv`` does, whose weight is +-alpha an output channel and sub-bit.

        Args:
            conv: the dense layer, padding_mode "zeros".
            tau: bits an index may take; None for as many as the weight needs.
            activation_bits: 1 if ``conv`` is to be fed sign(x), which the new layer takes itself.
            sign_zero: what the sign of 0 is.

        Raises:
            ValueError: padding_mode is another, or as :meth:`PackedWeight.from_dense`.
        """
        if conv.padding_mode != "zeros":
            raise ValueError(f"conv must have padding_mode 'zeros', got {conv.padding_mode!r}")
        layer = cls.from_packed(
            PackedWeight.from_dense(conv.weight, tau, conv.bias),
            stride=_pair_of(conv.stride),
            padding=conv.padding if isinstance(conv.padding, str) else _pair_of(conv.padding),
            dilation=_pair_of(conv.dilation),
            groups=conv.groups,
            activation_bits=activation_bits,
            sign_zero=sign_zero,
        )
        return layer.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) or (C_in, H, W) to the same of C_out; see :func:`subbit_infer.conv`."""
        return ops.conv(
            x,
            self.packed_weight(),
            None,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            activation_bits=self.activation_bits,
            sign_zero=self.sign_zero,
        )

    def extra_repr(self) -> str:
        """The layer's sizes, for ``print(model)``."""
        text = f"{self.in_channels}, {self.out_channels}, stride={self.stride}, padding={self.padding}, "
        if self.dilation not in (1, (1, 1)):
            text += f"dilation={self.dilation}, "
        if self.groups != 1:
            text += f"groups={self.groups}, "
        return text + self._weight_repr()


def _pair_of(value: tuple[int, ...]) -> tuple[int, int]:
    return value[0], value[1]


class SubbitLinear(_SubbitLayer):
    """A linear layer with a sub-bit weight, in place of ``torch.nn.Linear``: units are vectors of g inputs.

    Buffers and constructor are as in :class:`SubbitConv2d`.

    Args:
        in_features: size of the last dimension of the input, a multiple of g.
        out_features: size of the last dimension of the output.
        codewords: size of the codebook, 1 to 256.
        g: inputs of a unit; kernels are compiled for 8.
        scale: whether there is a scale an output.
        bias: whether there is a bias.
        activation_bits: 32, or 1 to take the sign of the input.
        sign_zero: what the sign of 0 is, 0 or 1.
        device: where the buffers are; "meta" for none yet.

    Raises:
        ValueError: a size breaks a rule, naming it.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        codewords: int = 32,
        *,
        g: int = 8,
        scale: bool = True,
        bias: bool = True,
        activation_bits: int = 32,
        sign_zero: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        if out_features < 1:
            raise ValueError(f"out_features must be at least 1, got {out_features}")
        super().__init__(
            out_features,
            _units(in_features, 1, (g, 1, 1)),
            (g, 1, 1),
            codewords,
            scale=scale,
            bias=bias,
            activation_bits=activation_bits,
            sign_zero=sign_zero,
            device=device,
        )
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def from_packed(cls, weight: PackedWeight, *, activation_bits: int = 32, sign_zero: int = 0) -> SubbitLinear:
        """A layer that holds a packed weight of 1x1 units."""
        g, kh, kw = weight.unit
        if (kh, kw) != (1, 1):
            raise ValueError(f"weight must have units of 1x1 taps, got units {weight.unit}")
        layer = cls(
            weight.units * g,
            weight.out_channels,
            weight.codewords,
            g=g,
            activation_bits=activation_bits,
            sign_zero=sign_zero,
            device="meta",
        )
        layer._set_weight(weight)
        return layer

    @classmethod
    def from_indices(
        cls,
        indices: Tensor,
        codebook: Tensor,
        *,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        **options: Any,
    ) -> SubbitLinear:
        """A layer from indices (C_out, C_in / g) and a codebook (K, g); ``options`` as in :meth:`from_packed`."""
        return cls.from_packed(PackedWeight.from_indices(indices, codebook, scale, bias), **options)

    @classmethod
    def from_dense(
        cls, linear: torch.nn.Linear, *, tau: int | None = None, activation_bits: int = 32, sign_zero: int = 0
    ) -> SubbitLinear:
        """A layer that computes what ``linear`` does, whose weight is +-alpha an output and sub-bit.

        Raises:
            ValueError: as :meth:`PackedWeight.from_dense`.
        """
        weight = PackedWeight.from_dense(linear.weight, tau, linear.bias)
        return cls.from_packed(weight, activation_bits=activation_bits, sign_zero=sign_zero).train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features); see :func:`subbit_infer.linear`."""
        return ops.linear(x, self.packed_weight(), activation_bits=self.activation_bits, sign_zero=self.sign_zero)

    def extra_repr(self) -> str:
        """The layer's sizes, for ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, {self._weight_repr()}"
