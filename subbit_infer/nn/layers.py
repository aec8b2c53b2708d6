"""Layers: SubbitConv2d and SubbitLinear."""

from __future__ import annotations

from typing import Any, Self, TypedDict, Unpack, cast

import torch
from torch import Tensor

from subbit_infer.core import codebook as codebooks
from subbit_infer.core.activations import PackedActivations
from subbit_infer.core.epilogue import check_activation
from subbit_infer.core.weight import PackedWeight, byte_count, check_channel_vector, check_indices, unpack_bits
from subbit_infer.ops import functional as ops


class Modes(TypedDict, total=False):
    """What a layer does around its sums; each means what it means in :func:`subbit_infer.conv`.

    Attributes:
        activation_bits: 32 (default), or 1 to take the sign of the input, which a packed input needs.
        sign_zero: what the sign of 0 is, 0 (default) or 1.
        activation: "none" (default), "relu", "hardtanh" or "prelu".
        output: "float" (default), "packed" or "both".
        pack_sign_zero: what a sign of 0 becomes in a packed output, 0 (default) or 1.
    """

    activation_bits: int
    sign_zero: int
    activation: str
    output: str
    pack_sign_zero: int


_MODES: Modes = {
    "activation_bits": 32,
    "sign_zero": 0,
    "activation": "none",
    "output": "float",
    "pack_sign_zero": 0,
}  # the defaults
_VECTORS = ("scale", "bias", "slope", "shift", "pack_shift")  # buffers (C_out,), each None unless asked for


class _SubbitLayer(torch.nn.Module):
    """The buffers of a layer, and what they mean."""

    packed_indices: Tensor
    packed_codebook: Tensor
    scale: Tensor | None
    bias: Tensor | None
    slope: Tensor | None
    shift: Tensor | None
    pack_shift: Tensor | None

    def __init__(
        self,
        out_channels: int,
        units: int,
        unit: tuple[int, int, int],
        codewords: int,
        *,
        scale: bool,
        bias: bool,
        shift: bool,
        pack_shift: bool,
        device: torch.device | str | None,
        modes: Modes,
    ) -> None:
        super().__init__()
        if unknown := modes.keys() - _MODES.keys():
            raise TypeError(f"options must be among those of the constructor, got {', '.join(sorted(unknown))}")
        modes = _MODES | modes
        if modes["activation_bits"] not in (1, 32):
            raise ValueError(f"activation_bits must be 1 or 32, got {modes['activation_bits']!r}")
        if modes["sign_zero"] not in (0, 1):
            raise ValueError(f"sign_zero must be 0 or 1, got {modes['sign_zero']!r}")
        check_activation(modes["activation"], modes["activation"] == "prelu")
        ops.check_packing(modes["output"], pack_shift, modes["pack_sign_zero"])
        if not isinstance(codewords, int) or not 1 <= codewords <= codebooks.MAX_CODEWORDS:
            raise ValueError(f"codewords must be an int from 1 to {codebooks.MAX_CODEWORDS}, got {codewords!r}")
        self.units = units
        self.unit = unit
        self.codewords = codewords
        self.activation_bits = modes["activation_bits"]
        self.sign_zero = modes["sign_zero"]
        self.activation = modes["activation"]
        self.output = modes["output"]
        self.pack_sign_zero = modes["pack_sign_zero"]
        g, kh, kw = unit
        row_bytes = byte_count(units * codebooks.tau_of(codewords))
        codebook_bytes = byte_count(codewords * g * kh * kw)

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.register_buffer("packed_indices", zeros(out_channels, row_bytes, dtype=torch.uint8))
        self.register_buffer("packed_codebook", zeros(codebook_bytes, dtype=torch.uint8))
        start = {"scale": 1.0 if scale else None, "bias": 0.0 if bias else None}
        start |= {"slope": 0.25 if self.activation == "prelu" else None}  # as in torch.nn.PReLU
        start |= {"shift": 0.0 if shift else None, "pack_shift": 0.0 if pack_shift else None}
        for name in _VECTORS:
            value = start[name]
            self.register_buffer(name, None if value is None else zeros(out_channels, dtype=torch.float32) + value)

    def _hold(self, weight: PackedWeight, **vectors: Tensor | None) -> None:
        """Takes a weight, and slope, shift and pack_shift, in place of the zeros of the constructor."""
        check_activation(self.activation, vectors["slope"] is not None)
        self.packed_indices = weight.packed_indices
        self.packed_codebook = weight.packed_codebook
        self.scale = weight.scale
        self.bias = weight.bias
        for name, vector in vectors.items():
            check_channel_vector(name, vector, weight.out_channels)
            setattr(self, name, None if vector is None else vector.detach().to(torch.float32).contiguous())

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """What ``to``, ``cuda``, ``half`` and the like do: vectors stay float32, as kernels read them."""
        before = {name: self._buffers[name] for name in _VECTORS}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, vector in before.items():
            after = self._buffers[name]
            if vector is not None and after is not None and after.dtype != vector.dtype:
                self._buffers[name] = vector.to(after.device)
        return self

    @property
    def tau(self) -> int:
        """Bits of an index."""
        return codebooks.tau_of(self.codewords)

    def packed_weight(self) -> PackedWeight:
        """The layer's weight; it shares the layer's memory."""
        get = cast("dict[str, Any]", self._buffers)  # 2 us less than looking each up as an attribute
        return PackedWeight(
            get["packed_indices"],
            get["packed_codebook"],
            self.units,
            self.codewords,
            self.unit,
            get["scale"],
            get["bias"],
        )

    def _options(self) -> dict[str, Any]:
        """What conv and linear are given beside the weight."""
        get = self._buffers
        return {
            "activation": self.activation,
            "slope": get["slope"],
            "shift": get["shift"],
            "activation_bits": self.activation_bits,
            "sign_zero": self.sign_zero,
            "output": self.output,
            "pack_shift": get["pack_shift"],
            "pack_sign_zero": self.pack_sign_zero,
        }

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
        """What differs from the defaults, after the weight itself."""
        parts = [f"tau={self.tau}, codewords={self.codewords}, unit={self.unit}"]
        parts += [f"{mode}={getattr(self, mode)!r}" for mode, usual in _MODES.items() if getattr(self, mode) != usual]
        parts += [f"{name}=False" for name in ("scale", "bias") if getattr(self, name) is None]
        parts += [f"{name}=True" for name in ("shift", "pack_shift") if getattr(self, name) is not None]
        return ", ".join(parts)


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

    It computes ``act(scale * sums + bias + residual) + shift``; see :func:`subbit_infer.conv`. The constructor makes a
    layer whose indices and codebook are zero, to load a state_dict into; :meth:`from_dense` and :meth:`from_indices`
    make one that holds a weight.

    Buffers, and so entries of the state_dict: ``packed_indices`` and ``packed_codebook``, uint8 as in
    :class:`~subbit_infer.PackedWeight`; ``scale``, ``bias``, ``slope``, ``shift`` and ``pack_shift``, float32 (C_out,)
    each, or None and then not in the state_dict. There is a ``slope`` where the activation is "prelu". Modes are not
    in the state_dict.

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
        shift: whether there is a shift after the activation.
        pack_shift: whether there is a shift before the signs of a packed output.
        device: where the buffers are; "meta" for none yet.
        modes: activation_bits, sign_zero, activation, output and pack_sign_zero; see :class:`Modes`.

    Raises:
        TypeError: there is no such mode, or one has the wrong type.
        ValueError: a size or mode breaks a rule, naming it.
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
        shift: bool = False,
        pack_shift: bool = False,
        device: torch.device | str | None = None,
        **modes: Unpack[Modes],
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
            shift=shift,
            pack_shift=pack_shift,
            device=device,
            modes=modes,
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
        slope: Tensor | None = None,
        shift: Tensor | None = None,
        pack_shift: Tensor | None = None,
        **modes: Unpack[Modes],
    ) -> SubbitConv2d:
        """A layer that holds a packed weight, and (C_out,) vectors; a slope is needed where activation is "prelu".

        Raises:
            TypeError, ValueError: as the constructor, or a vector is not (C_out,) floats.
        """
        layer = cls(
            weight.units * weight.unit[0] * groups,
            weight.out_channels,
            weight.unit,
            weight.codewords,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            shift=shift is not None,
            pack_shift=pack_shift is not None,
            device="meta",
            **modes,
        )
        layer._hold(weight, slope=slope, shift=shift, pack_shift=pack_shift)
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
        cls,
        conv: torch.nn.Conv2d,
        *,
        tau: int | None = None,
        slope: Tensor | None = None,
        shift: Tensor | None = None,
        pack_shift: Tensor | None = None,
        **modes: Unpack[Modes],
    ) -> SubbitConv2d:
        """A layer that computes what ``conv`` does, whose weight is +-alpha an output channel and sub-bit.

        Args:
            conv: the dense layer, padding_mode "zeros".
            tau: bits an index may take; None for as many as the weight needs.
            slope: as in :meth:`from_packed`; so are shift and pack_shift.
            shift: what the new layer adds after its activation.
            pack_shift: what it adds before the signs of a packed output.
            modes: as in the constructor; activation_bits=1 if ``conv`` is to be fed sign(x), which the new layer takes
                itself.

        Raises:
            TypeError, ValueError: padding_mode is another, or as :meth:`from_packed` and
                :meth:`PackedWeight.from_dense`.
        """
        if conv.padding_mode != "zeros":
            raise ValueError(f"conv must have padding_mode 'zeros', got {conv.padding_mode!r}")
        layer = cls.from_packed(
            PackedWeight.from_dense(conv.weight, tau, conv.bias),
            stride=_pair_of(conv.stride),
            padding=conv.padding if isinstance(conv.padding, str) else _pair_of(conv.padding),
            dilation=_pair_of(conv.dilation),
            groups=conv.groups,
            slope=slope,
            shift=shift,
            pack_shift=pack_shift,
            **modes,
        )
        return layer.train(conv.training)

    def forward(self, x: Tensor | PackedActivations, residual: Tensor | None = None) -> ops.Result:
        """(N, C_in, H, W) or (C_in, H, W) to the same of C_out; see :func:`subbit_infer.conv`.

        Args:
            x: floats, or packed activations where activation_bits is 1.
            residual: the output's shape, added after the bias; or None.

        Returns:
            A tensor, packed activations or both, as the layer's ``output`` says.
        """
        result: ops.Result = ops.conv(
            x,
            self.packed_weight(),
            None,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            residual=residual,
            **self._options(),
        )
        return result

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
        shift: whether there is a shift after the activation.
        pack_shift: whether there is a shift before the signs of a packed output.
        device: where the buffers are; "meta" for none yet.
        modes: activation_bits, sign_zero, activation, output and pack_sign_zero; see :class:`Modes`.

    Raises:
        TypeError: there is no such mode, or one has the wrong type.
        ValueError: a size or mode breaks a rule, naming it.
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
        shift: bool = False,
        pack_shift: bool = False,
        device: torch.device | str | None = None,
        **modes: Unpack[Modes],
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
            shift=shift,
            pack_shift=pack_shift,
            device=device,
            modes=modes,
        )
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def from_packed(
        cls,
        weight: PackedWeight,
        *,
        slope: Tensor | None = None,
        shift: Tensor | None = None,
        pack_shift: Tensor | None = None,
        **modes: Unpack[Modes],
    ) -> SubbitLinear:
        """A layer that holds a packed weight of 1x1 units; the rest as in :meth:`SubbitConv2d.from_packed`."""
        g, kh, kw = weight.unit
        if (kh, kw) != (1, 1):
            raise ValueError(f"weight must have units of 1x1 taps, got units {weight.unit}")
        layer = cls(
            weight.units * g,
            weight.out_channels,
            weight.codewords,
            g=g,
            shift=shift is not None,
            pack_shift=pack_shift is not None,
            device="meta",
            **modes,
        )
        layer._hold(weight, slope=slope, shift=shift, pack_shift=pack_shift)
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
        cls,
        linear: torch.nn.Linear,
        *,
        tau: int | None = None,
        slope: Tensor | None = None,
        shift: Tensor | None = None,
        pack_shift: Tensor | None = None,
        **modes: Unpack[Modes],
    ) -> SubbitLinear:
        """A layer that computes what ``linear`` does, whose weight is +-alpha an output and sub-bit.

        Raises:
            TypeError, ValueError: as :meth:`from_packed` and :meth:`PackedWeight.from_dense`.
        """
        weight = PackedWeight.from_dense(linear.weight, tau, linear.bias)
        layer = cls.from_packed(weight, slope=slope, shift=shift, pack_shift=pack_shift, **modes)
        return layer.train(linear.training)

    def forward(self, x: Tensor | PackedActivations, residual: Tensor | None = None) -> ops.Result:
        """(..., in_features) to (..., out_features); the rest as in :meth:`SubbitConv2d.forward`."""
        result: ops.Result = ops.linear(x, self.packed_weight(), residual=residual, **self._options())
        return result

    def extra_repr(self) -> str:
        """The layer's sizes, for ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, {self._weight_repr()}"
