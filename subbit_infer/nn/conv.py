"""The convolution layer."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from subbit_infer.core import codebook
from subbit_infer.core.activations import PackedActivations
from subbit_infer.core.sizes import pair
from subbit_infer.core.weight import PackedWeight
from subbit_infer.nn.base import Modes, SubbitLayer, units_of_channels
from subbit_infer.ops import functional as ops


class SubbitConv2d(SubbitLayer):
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
        scale: whether there is a scale per output channel.
        bias: whether there is a bias.
        shift: whether there is a shift after the activation.
        pack_shift: whether there is a shift before the signs are packed.
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
        unit: tuple[int, int, int] = codebook.UNIT_3X3,
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
            units_of_channels(in_channels, groups, unit),
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
        """A layer that computes what ``conv`` does, whose weight is sub-bit and +-alpha per output channel.

        Args:
            conv: the dense layer, padding_mode "zeros".
            tau: bits per index at most; None for as many as the weight needs.
            slope: as in :meth:`from_packed`; so are shift and pack_shift.
            shift: what the new layer adds after its activation.
            pack_shift: what it adds before the signs are packed.
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
            stride=pair(conv.stride),
            padding=conv.padding if isinstance(conv.padding, str) else pair(conv.padding),
            dilation=pair(conv.dilation),
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
