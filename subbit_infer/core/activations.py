"""Binary activations packed at one or two bits each, between one convolution and the next.

A pixel's channels are bits of 64-bit words, channel c being bit c % 64 of word c // 64, bit 0 the least significant.
With 70 channels a pixel has two words; bits without a channel are 0::

    word           0                                1
    bit     63 62 61 ... 2  1  0     63 ... 7  6   5  4  3  2  1  0
    channel 63 62 61 ... 2  1  0      0 ... 0  0  69 68 67 66 65 64

A word of ``plus`` says which activations are +1; one of ``nonzero``, which are not 0. Where there is no ``nonzero``,
none is 0 and those that are not +1 are -1::

    plus nonzero    value          plus    value
       0       0        0             0       -1
       0       1       -1             1       +1
       1       1       +1
       1       0    refused
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import GetAttrKey, register_pytree_node

from subbit_infer.core.bits import bits_of_numbers, numbers_of_bits

WORD = 64


def word_count(channels: int) -> int:
    """Words that hold so many channels."""
    return (channels + WORD - 1) // WORD


def pack_signs(x: Tensor, shift: Tensor | None, sign_zero: int) -> tuple[Tensor, Tensor | None]:
    """The words of :func:`pack`, whose arguments are taken to be right: ``plus`` and ``nonzero``."""
    v = x.to(torch.float32)
    v = v if shift is None else v + shift.to(torch.float32)[:, None, None]
    return (_words(v >= 0), None) if sign_zero else (_words(v > 0), _words((v > 0) | (v < 0)))


def unpack_signs(plus: Tensor, nonzero: Tensor | None, channels: int) -> Tensor:
    """The activations -1, 0 and +1 of words: (N, channels, H, W) float32, channels_last."""
    negative = 1 if nonzero is None else _bits(nonzero, channels)
    signs: Tensor = _bits(plus, channels) * 2 - negative
    return signs.permute(0, 3, 1, 2)


def _words(bits: Tensor) -> Tensor:
    """(N, C, H, W) booleans as (N, H, W, ceil(C / 64)) int64."""
    channels = bits.shape[1]
    by_pixel = F.pad(bits.permute(0, 2, 3, 1), (0, word_count(channels) * WORD - channels))
    by_pixel = by_pixel.unflatten(-1, (word_count(channels), WORD))
    return numbers_of_bits(by_pixel)


def _bits(words: Tensor, channels: int) -> Tensor:
    """The inverse of :func:`_words` but for the order: (N, H, W, channels) float32 of 0 and 1."""
    bits = bits_of_numbers(words, WORD)
    return bits.flatten(-2)[..., :channels].to(torch.float32)


def all_channels(channels: int, device: torch.device) -> Tensor:
    """(ceil(channels / 64),) words that have the bit of every channel."""
    return _words(torch.ones(1, channels, 1, 1, dtype=torch.bool, device=device))[0, 0, 0]


def check_words(plus: Tensor, nonzero: Tensor | None, channels: int) -> None:
    """Checks dtypes and shapes of words, not what they hold.

    Raises:
        TypeError: one is not an int64 tensor.
        ValueError: its shape is not (N, H, W, ceil(channels / 64)), or the two are on different devices.
    """
    for name, words in (("plus", plus), ("nonzero", nonzero)):
        if words is None and name == "nonzero":
            continue
        if not isinstance(words, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(words).__name__}")
        if words.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {words.dtype}")
        if words.dim() != 4 or words.shape[3] != word_count(channels):
            raise ValueError(
                f"{name} must be (N, H, W, ceil(channels / 64)) with {word_count(channels)} words for {channels} "
                f"channels, got shape {tuple(words.shape)}"
            )
    if nonzero is not None and (nonzero.shape != plus.shape or nonzero.device != plus.device):
        raise ValueError(
            f"nonzero must have the shape and device of plus, {tuple(plus.shape)} on {plus.device}, "
            f"got {tuple(nonzero.shape)} on {nonzero.device}"
        )


@dataclass(frozen=True, eq=False)
class PackedActivations:
    """Binary activations of logical shape (N, C, H, W), one or two bits each; :func:`pack` makes them.

    The module's docstring draws the format. Constructing one checks it wholly, but for what the words hold inside
    torch.compile and torch.export and on the meta device, where they cannot be read.

    Attributes:
        plus: (N, H, W, ceil(C / 64)) int64: bit c % 64 of word c // 64 is 1 iff the activation of channel c is +1.
        nonzero: the same of the activations that are not 0; None where every activation is -1 or +1.
        channels: C.
        trusted: (argument only) True skips the checks, for words that an operator of this package has made.

    Raises:
        TypeError: a tensor is not int64, or ``channels`` is not an int.
        ValueError: shapes do not fit, a bit beyond the channels is 1, or ``plus`` has a bit that ``nonzero`` lacks.
    """

    plus: Tensor
    nonzero: Tensor | None
    channels: int
    trusted: InitVar[bool] = False

    def __post_init__(self, trusted: bool) -> None:
        if trusted:
            return
        if not isinstance(self.channels, int | torch.SymInt) or isinstance(self.channels, bool):
            raise TypeError(f"channels must be an int, got {self.channels!r}")
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")
        check_words(self.plus, self.nonzero, self.channels)
        if type(self.plus) is Tensor and not self.plus.is_meta and not torch.compiler.is_compiling():
            self._check_bits()

    def _check_bits(self) -> None:
        beyond = ~all_channels(self.channels, self.plus.device)
        for name, words in (("plus", self.plus), ("nonzero", self.nonzero)):
            if words is not None and bool((words & beyond).any()):
                raise ValueError(f"{name} must have no bit set beyond its {self.channels} channels, but has")
        if self.nonzero is not None and bool((self.plus & ~self.nonzero).any()):
            raise ValueError("plus must be a subset of nonzero, but has a bit that nonzero lacks")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The logical shape (N, C, H, W)."""
        n, height, width, _ = self.plus.shape
        return n, self.channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the words are."""
        return self.plus.device

    @property
    def nbytes(self) -> int:
        """Bytes of the words."""
        return self.plus.nbytes + (0 if self.nonzero is None else self.nonzero.nbytes)

    def unpack(self) -> Tensor:
        """The activations as -1, 0 and +1: (N, C, H, W) float32, channels_last."""
        unpacked: Tensor = torch.ops.subbit_infer.unpack(self.plus, self.nonzero, self.channels)
        return unpacked

    def to(self, device: torch.device | str) -> PackedActivations:
        """The same activations on another device."""
        nonzero = None if self.nonzero is None else self.nonzero.to(device)
        return PackedActivations(self.plus.to(device), nonzero, self.channels, trusted=True)

    def __repr__(self) -> str:
        zeros = "" if self.nonzero is not None else ", without zeros"
        return f"PackedActivations(shape={self.shape}{zeros}, device={str(self.device)!r})"


def _unflatten(words: Iterable[Any], channels: Any) -> PackedActivations:
    plus, nonzero = words
    return PackedActivations(plus, nonzero, channels, trusted=True)


# For torch.export: inputs and outputs of a program may be packed.
register_pytree_node(
    PackedActivations,
    lambda packed: ([packed.plus, packed.nonzero], packed.channels),
    _unflatten,
    serialized_type_name="subbit_infer.PackedActivations",
    flatten_with_keys_fn=lambda packed: (
        [(GetAttrKey("plus"), packed.plus), (GetAttrKey("nonzero"), packed.nonzero)],
        packed.channels,
    ),
)
