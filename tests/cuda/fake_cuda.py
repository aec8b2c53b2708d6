"""A stand-in for subbit_infer._C_cuda that computes in torch on the CPU, from nothing but what launches are given."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from helpers import UNIT_1X1, UNIT_3X3, dense_weight

from subbit_infer.backends.cuda import device as cuda_device
from subbit_infer.backends.cuda import planner as cuda_planner
from subbit_infer.core.activations import pack_signs, unpack_signs, word_count
from subbit_infer.core.epilogue import ACTIVATIONS, Epilogue

STREAM = 4711
SCRATCH = 48
PREPARED = 64
MARK = 0xAB  # what prepare writes


def view(address: int, dtype: torch.dtype, shape: Any, strides: Any = None) -> torch.Tensor:
    """The tensor at an address."""
    if strides is None:
        strides = torch.empty(shape, device="meta").stride()
    count = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)


def vector(address: int, count: int) -> torch.Tensor | None:
    return view(address, torch.float32, (count,)) if address else None


class Module:
    """What runtime takes for the module: with the routes that are said to have a kernel."""

    architectures = [80, 86, 89, 90]  # noqa: RUF012
    version = 13000

    class Unit:
        k3x3 = UNIT_3X3
        k8x1x1 = UNIT_1X1

    def __init__(self) -> None:
        self.routes = {"sharing", "product", "sparse"}
        self.launches: list[str] = []
        self.wrong: set[str] = set()  # routes whose last result is off by one
        self.prepares = 0

    def Conv(self, **given: Any) -> Conv:  # noqa: N802
        return Conv(self, given)

    def pack(self, *, device, stream, x, element, shape, strides, shift, plus, nonzero) -> None:
        assert stream == STREAM
        self.launches.append("pack")
        values = view(x, cuda_planner.ELEMENTS[element], shape, strides)
        words = shape[0], shape[2], shape[3], word_count(shape[1])
        signs = pack_signs(values, vector(shift, shape[1]), sign_zero=int(nonzero == 0))
        for address, result in zip((plus, nonzero), signs, strict=True):
            if address:
                view(address, torch.int64, words).copy_(result)


class Conv:
    """A convolution of settled sizes."""

    def __init__(self, module: Module, given: dict[str, Any]) -> None:
        assert given["capability"] == cuda_device.device_of(torch.device("cuda")).capability
        self.module = module
        self.given = given

    def can_run(self, route: str) -> bool:
        given = self.given
        has_kernel = route != "sparse" or (
            given["unit"] == UNIT_3X3
            and given["codewords"] <= 8
            and not given["binary"]
            and given["x_strides"] is not None
        )
        return route in self.module.routes and has_kernel

    def scratch_bytes(self, route: str, x: int, x_nonzero: int) -> int:
        assert x
        return 0 if route == "sharing" else SCRATCH

    def weight_bytes(self, route: str) -> int:
        return {"sharing": 0, "product": PREPARED, "sparse": PREPARED + 16}[route]

    def prepare(self, *, route, device, stream, indices, codebook, weight) -> None:
        assert stream == STREAM
        assert indices
        assert codebook
        self.module.prepares += 1
        view(weight, torch.uint8, (self.weight_bytes(route),)).fill_(MARK)

    def _weight(self, indices: int, codebook: int) -> torch.Tensor:
        unit, count, outputs = self.given["unit"], self.given["codewords"], self.given["y_shape"][1]
        units = self.given["x_shape"][1] // self.given["groups"] // unit[0]
        tau = max(1, (count - 1).bit_length())
        words = view(indices, torch.int32, (outputs, -(-units * tau // 32)))
        bits = (words.long()[:, :, None] >> torch.arange(32) & 1).flatten(1)[:, : units * tau]
        numbers = (bits.reshape(outputs, units, tau) << torch.arange(tau)).sum(2)
        taps = view(codebook, torch.int16, (count,)).long()[:, None] >> torch.arange(unit[0] * unit[1] * unit[2]) & 1
        return dense_weight(numbers, (taps * 2.0 - 1).reshape(count, *unit))

    def _input(self, x: int, x_nonzero: int) -> torch.Tensor:
        given = self.given
        n, channels, height, width = given["x_shape"]
        if given["x_strides"] is None:
            words = n, height, width, word_count(channels)
            nonzero = view(x_nonzero, torch.int64, words) if x_nonzero else None
            return unpack_signs(view(x, torch.int64, words), nonzero, channels)
        values = view(x, cuda_planner.ELEMENTS[given["element"]], given["x_shape"], given["x_strides"]).float()
        if not given["binary"]:
            return values
        return torch.where(values == 0, 1.0, values.sign()) if given["sign_zero"] else values.sign()

    def __call__(
        self, *, route, device, stream, x, x_nonzero, indices, codebook, prepared_weight, scale, bias, residual, slope,
        shift, y, y_plus, y_nonzero, pack_shift, scratch,
    ) -> None:  # fmt: skip
        given, (n, outputs, height, width) = self.given, self.given["y_shape"]
        assert stream == STREAM
        assert (scratch != 0) == (prepared_weight != 0) == (route != "sharing")
        if prepared_weight:
            assert (view(prepared_weight, torch.uint8, (self.weight_bytes(route),)) == MARK).all()
            view(scratch, torch.uint8, (SCRATCH,)).fill_(0)
        self.module.launches.append(route)
        geometry = given["stride"], given["padding"], given["dilation"], given["groups"]
        sums = F.conv2d(self._input(x, x_nonzero), self._weight(indices, codebook), None, *geometry)
        element = cuda_planner.ELEMENTS[given["element"]]
        other = view(residual, element, given["y_shape"], given["residual_strides"]) if residual else None
        vectors = [vector(address, outputs) for address in (scale, bias, slope, shift)]
        activation = ACTIVATIONS[given["activation"]]
        result = Epilogue(vectors[0], vectors[1], other, activation, vectors[2], vectors[3]).apply(sums)
        if route in self.module.wrong:
            result[-1, -1, -1, -1] += 1
        assert (y != 0) == (given["y_strides"] is not None)
        assert (y_plus != 0) == given["packs"]
        if y:
            view(y, element, given["y_shape"], given["y_strides"]).copy_(result)
        words = n, height, width, word_count(outputs)
        if y_plus:
            signs = pack_signs(result, vector(pack_shift, outputs), sign_zero=int(y_nonzero == 0))
            for address, made in zip((y_plus, y_nonzero), signs, strict=True):
                if address:
                    view(address, torch.int64, words).copy_(made)
