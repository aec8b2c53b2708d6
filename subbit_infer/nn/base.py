"""What the layers share: the buffers of a weight, and the modes."""

from __future__ import annotations

from typing import Any, Self, TypedDict, cast

import torch
from torch import Tensor

from subbit_infer.core import codebook
from subbit_infer.core.bits import byte_count, unpack_bits
from subbit_infer.core.epilogue import check_activation
from subbit_infer.core.weight import PackedWeight, check_channel_vector, check_indices
from subbit_infer.ops.normalize import check_packing


class Modes(TypedDict, total=False):
    """What a layer does before and after its sums; each is as in :func:`subbit_infer.conv`.

    Attributes:
        activation_bits: 32 (default), or 1 to take the sign of the input, which a packed input needs.
        sign_zero: the sign of 0: 0 (default) or 1.
        activation: "none" (default), "relu", "hardtanh" or "prelu".
        output: "float" (default), "packed" or "both".
        pack_sign_zero: the sign of 0 in a packed output: 0 (default) or 1.
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


class SubbitLayer(torch.nn.Module):
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
        check_packing(modes["output"], pack_shift, modes["pack_sign_zero"])
        if not isinstance(codewords, int) or not 1 <= codewords <= codebook.MAX_CODEWORDS:
            raise ValueError(f"codewords must be an int from 1 to {codebook.MAX_CODEWORDS}, got {codewords!r}")
        self.units = units
        self.unit = unit
        self.codewords = codewords
        self.activation_bits = modes["activation_bits"]
        self.sign_zero = modes["sign_zero"]
        self.activation = modes["activation"]
        self.output = modes["output"]
        self.pack_sign_zero = modes["pack_sign_zero"]
        g, kh, kw = unit
        row_bytes = byte_count(units * codebook.tau_of(codewords))
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
        """Takes a weight, slope, shift and pack_shift, in place of the constructor's zeros."""
        check_activation(self.activation, vectors["slope"] is not None)
        self.packed_indices = weight.packed_indices
        self.packed_codebook = weight.packed_codebook
        self.scale = weight.scale
        self.bias = weight.bias
        for name, vector in vectors.items():
            check_channel_vector(name, vector, weight.out_channels)
            setattr(self, name, None if vector is None else vector.detach().to(torch.float32).contiguous())

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Implements ``to``, ``cuda``, ``half`` and the like: vectors stay float32, as kernels read them."""
        before = {name: self._buffers[name] for name in _VECTORS}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, vector in before.items():
            after = self._buffers[name]
            if vector is not None and after is not None and after.dtype != vector.dtype:
                self._buffers[name] = vector.to(after.device)
        return self

    @property
    def tau(self) -> int:
        """Bits per index."""
        return codebook.tau_of(self.codewords)

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
        """The arguments of conv and linear other than the weight."""
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
        """The weight, then what differs from the defaults."""
        parts = [f"tau={self.tau}, codewords={self.codewords}, unit={self.unit}"]
        parts += [f"{mode}={getattr(self, mode)!r}" for mode, usual in _MODES.items() if getattr(self, mode) != usual]
        parts += [f"{name}=False" for name in ("scale", "bias") if getattr(self, name) is None]
        parts += [f"{name}=True" for name in ("shift", "pack_shift") if getattr(self, name) is not None]
        return ", ".join(parts)


def units_of_channels(in_channels: int, groups: int, unit: tuple[int, int, int]) -> int:
    """Units per output channel; checks the sizes."""
    if len(unit) != 3 or min(unit) < 1:
        raise ValueError(f"unit must be three positive sizes (g, kh, kw), got {unit}")
    if in_channels < 1 or groups < 1 or in_channels % (groups * unit[0]) != 0:
        raise ValueError(
            f"in_channels must be a positive multiple of groups * g = {groups} * {unit[0]}, got {in_channels}"
        )
    return in_channels // (groups * unit[0])
