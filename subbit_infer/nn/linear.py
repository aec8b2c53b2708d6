"""The linear layer."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from subbit_infer.core.activations import PackedActivations
from subbit_infer.core.weight import PackedWeight
from subbit_infer.nn.base import Modes, SubbitLayer, units_of_channels
from subbit_infer.ops import functional as ops


class SubbitLinear(SubbitLayer):
    """A linear layer with a sub-bit weight, in place of ``torch.nn.Linear``: units are vectors of g inputs.

    Buffers and constructor are as in :class:`SubbitConv2d`.

    Args:
        in_features: size of the last dimension of the input, a multiple of g.
        out_features: size of the last dimension of the output.
        codewords: size of the codebook, 1 to 256.
        g: inputs per unit; kernels are compiled for 8.
        scale: whether there is a scale per output.
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
            units_of_channels(in_features, 1, (g, 1, 1)),
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
        """A layer that computes what ``linear`` does, whose weight is sub-bit and +-alpha per output.

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
