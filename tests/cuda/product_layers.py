"""Layers for the product under the host shim, and calls of them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import torch
from helpers import UNIT_1X1, UNIT_3X3, integers, random_weight

from subbit_infer import PackedActivations
from subbit_infer.core import reference
from subbit_infer.core.codebook import tau_of
from subbit_infer.core.epilogue import ACTIVATIONS, Epilogue

ELEMENTS = (torch.float32, torch.float16, torch.bfloat16)
BY_SIZE, LARGE, SMALL, WGMMA = range(4)
A100, H100, B200 = 80, 90, 100  # compute capabilities
NAN, INF = float("nan"), float("inf")
NO_EPILOGUE = Epilogue()


class Call(ctypes.Structure):
    """ConvCall of tests/cuda/shim/call.h."""

    _fields_ = tuple(
        (name, kind)
        for kind, names in {
            ctypes.c_int64: ("unit", "binary", "sign_zero", "activation", "element", "codewords", "tile", "capability",
                             "batch", "in_channels", "height", "width", "out_channels", "out_height", "out_width",
                             "groups"),
            ctypes.c_int64 * 2: ("stride", "pad", "dilation"),
            ctypes.c_int64 * 4: ("x_strides", "y_strides", "residual_strides"),
            ctypes.c_void_p: ("x", "x_plus", "x_nonzero", "indices", "codebook", "scale", "bias", "residual", "slope",
                              "shift", "pack_shift", "y", "y_plus", "y_nonzero"),
        }.items()
        for name in names
    )  # fmt: skip


@dataclass
class Layer:
    """A weight and what is done with it."""

    unit: tuple[int, int, int]
    shape: tuple[int, int, int, int]  # N, C_in, H, W
    out_channels: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    codewords: int = 11
    indices: torch.Tensor = field(init=False)
    codebook: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        units = self.shape[1] // self.groups // self.unit[0]
        self.indices, self.codebook = random_weight(self.unit, self.out_channels, units, self.codewords)

    @property
    def geometry(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.groups

    def sizes(self) -> tuple[int, int, int, int]:
        kernel = self.unit[1]
        out = [
            (self.shape[i + 2] + 2 * self.padding[i] - self.dilation[i] * (kernel - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        ]
        return self.shape[0], self.out_channels, out[0], out[1]

    def words(self) -> torch.Tensor:
        """The indices as the device has them: rows of 32-bit words."""
        tau = tau_of(self.codewords)
        rows = []
        for row in self.indices.tolist():
            number = sum(index << (i * tau) for i, index in enumerate(row))
            rows.append([number >> at & 0xFFFFFFFF for at in range(0, len(row) * tau, 32)])
        return torch.tensor(rows, dtype=torch.int64).to(torch.uint32)

    def patterns(self) -> torch.Tensor:
        bits = (self.codebook.flatten(1) > 0).to(torch.int64)
        return (bits << torch.arange(bits.shape[1])).sum(1).to(torch.uint16)


LAYERS = {
    "one channel": Layer(UNIT_3X3, (1, 1, 5, 5), 3, padding=(1, 1)),
    "a whole step": Layer(UNIT_3X3, (2, 64, 5, 6), 40, padding=(1, 1), codewords=32),
    "odd": Layer(UNIT_3X3, (1, 70, 5, 7), 70, padding=(1, 1), codewords=256),
    "strided": Layer(UNIT_3X3, (1, 40, 9, 8), 12, (2, 3), (0, 2), (2, 1), codewords=2),
    "groups": Layer(UNIT_3X3, (2, 96, 4, 5), 20, padding=(1, 1), groups=2),
    "wide groups": Layer(UNIT_3X3, (1, 128, 3, 4), 128, padding=(1, 1), groups=2),
    "depthwise": Layer(UNIT_3X3, (1, 5, 4, 4), 10, padding=(1, 1), groups=5, codewords=1),
    "mostly padding": Layer(UNIT_3X3, (1, 9, 1, 2), 5, padding=(3, 2), dilation=(2, 2)),
    "1x1": Layer(UNIT_1X1, (2, 72, 3, 5), 65, codewords=32),
    "1x1 strided": Layer(UNIT_1X1, (1, 16, 7, 6), 8, (2, 2), (1, 1), codewords=256),
    "1x1 groups": Layer(UNIT_1X1, (1, 80, 3, 3), 6, groups=2),
    "long": Layer(UNIT_3X3, (1, 300, 3, 3), 9, padding=(1, 1)),
}  # fmt: skip


def strided(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values in another order in memory."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "gaps":
        n, c, h, w = x.shape
        return (
            torch.full((n, w + 1, c + 3, h + 2), NAN, dtype=x.dtype)[:, :w, 1 : c + 1, 2:].permute(0, 2, 3, 1).copy_(x)
        )
    return x.contiguous()


def pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def call_of(
    layer: Layer,
    x: torch.Tensor | PackedActivations,
    y: torch.Tensor | None = None,
    words: tuple[torch.Tensor, torch.Tensor | None] | None = None,
    *,
    element: torch.dtype = torch.float32,
    binary: bool = False,
    sign_zero: int = 0,
    tile: int = BY_SIZE,
    capability: int = A100,
    pack_shift: torch.Tensor | None = None,
    epilogue: Epilogue = NO_EPILOGUE,
) -> tuple[Call, list[Any]]:
    """The call, and what must live as long as it."""
    packed = isinstance(x, PackedActivations)
    indices, patterns = layer.words(), layer.patterns()
    plus, nonzero = words or (None, None)

    def strides(tensor: torch.Tensor | None) -> Any:
        return (ctypes.c_int64 * 4)(*(tensor.stride() if tensor is not None else (0, 0, 0, 0)))

    n, c, h, w = layer.shape
    _, out_channels, out_height, out_width = layer.sizes()
    call = Call(
        int(layer.unit == UNIT_1X1), int(binary), sign_zero, ACTIVATIONS.index(epilogue.activation),
        ELEMENTS.index(element), layer.codewords, tile, capability, n, c, h, w,
        out_channels, out_height, out_width, layer.groups,
        *((ctypes.c_int64 * 2)(*pair) for pair in (layer.stride, layer.padding, layer.dilation)),
        strides(None if packed else x), strides(y), strides(epilogue.residual),
        None if packed else pointer(x), pointer(x.plus) if packed else None, pointer(x.nonzero) if packed else None,
        pointer(indices), pointer(patterns), pointer(epilogue.scale), pointer(epilogue.bias),
        pointer(epilogue.residual), pointer(epilogue.slope), pointer(epilogue.shift), pointer(pack_shift),
        pointer(y), pointer(plus), pointer(nonzero),
    )  # fmt: skip
    return call, [x, y, words, indices, patterns, epilogue, pack_shift]


def empty_like_output(layer: Layer, element: torch.dtype, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Poisoned memory, and the output inside."""
    n, c, h, w = layer.sizes()
    memory = torch.full((n * c * h * w + 64,), 77.0, dtype=element)
    inside = memory[32 : 32 + n * c * h * w]
    if layout == "channels_last":
        return memory, inside.view(n, h, w, c).permute(0, 3, 1, 2)
    return memory, inside.view(n, c, h, w)


def run(
    product_shim: ctypes.CDLL,
    layer: Layer,
    x: torch.Tensor | PackedActivations,
    *,
    element: torch.dtype = torch.float32,
    out: str = "contiguous",
    **options: Any,
) -> torch.Tensor:
    """The product's float result, with nothing around it written."""
    memory, y = empty_like_output(layer, element, out)
    call, _alive = call_of(layer, x, y, element=element, **options)
    assert product_shim.product_call(ctypes.byref(call)) == 0, product_shim.product_error()
    size = y.numel()
    assert (memory[:32] == 77).all()
    assert (memory[32 + size :] == 77).all()
    return y


def expected(layer: Layer, x: torch.Tensor, epilogue: Epilogue = NO_EPILOGUE) -> torch.Tensor:
    """By decoding; exact where sums are integers."""
    sums = reference.conv2d(x.double(), layer.indices, layer.codebook, None, *layer.geometry)
    assert (sums == sums.float()).all()
    return epilogue.apply(sums.float())


def full_epilogue(layer: Layer, element: torch.dtype, activation: str) -> Epilogue:
    def of_channels(seed: int) -> torch.Tensor:
        return torch.randn(layer.out_channels, generator=torch.Generator().manual_seed(seed))

    residual = strided(integers(*layer.sizes(), seed=9).to(element), "gaps")
    slope = of_channels(3) if activation == "prelu" else None
    return Epilogue(of_channels(1).abs() / 16, of_channels(2), residual, activation, slope, of_channels(4))


FLOATS, BITS, BYTES = {"binary": False}, {"binary": True}, {"binary": True, "capability": B200}
