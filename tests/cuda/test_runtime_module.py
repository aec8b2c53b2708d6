"""The compiled CUDA module's checks, and why it is not used where it is not. Without a device."""

from __future__ import annotations

import importlib
import importlib.util
import re

import fake_cuda
import pytest
import torch
from helpers import expected_conv, integers
from stand_in import H100, packed

from subbit_infer import conv
from subbit_infer.backends.cuda import device as cuda_device
from subbit_infer.backends.cuda import packing, runtime


class TestReasons:
    def test_torch_without_cuda(self, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", None)
        assert re.fullmatch(r"torch \S+ is built without CUDA", str(runtime.reason()))

    def test_module_that_was_not_built(self, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(runtime, "_C_cuda", None)
        monkeypatch.setattr(runtime, "_missing", "not built")
        assert runtime.reason() == "not built"

    def test_no_device(self, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(runtime, "_C_cuda", fake_cuda.Module())
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert runtime.reason() == "torch finds no CUDA device and driver that it can use"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert runtime.reason() is None

    @pytest.mark.parametrize(
        ("capability", "runs"),
        [
            (70, False),
            (75, False),
            (80, True),
            (86, True),
            (87, True),
            (89, True),
            (90, True),
            (100, True),
            (120, True),
        ],
    )
    def test_architectures(self, module, capability, runs):
        # Machine code runs on later devices of its major version; PTX of the last is compiled for all later ones.
        assert runtime.is_built_for(capability) == runs

    def test_device_that_nothing_is_built_for(self, module, monkeypatch, cudnn):
        monkeypatch.setattr(cuda_device, "device_of", lambda device: cuda_device.Device("Tesla T4", 75, 40))
        weight, indices, codebook = packed()
        message = (
            r"x must be on a device that kernels are built for \(sm_80, sm_86, sm_89, sm_90 and, through the PTX of "
            r"sm_90, later ones\), got cpu: Tesla T4, sm_75; SUBBIT_PLAN=dense runs it by torch"
        )
        for call in (
            lambda: conv(integers(1, 8, 5, 6), weight),
            lambda: packing.pack(torch.ones(1, 8, 2, 2), None, 0),
        ):
            with pytest.raises(RuntimeError, match=message):
                call()
        monkeypatch.setenv("SUBBIT_PLAN", "dense")
        x = integers(1, 8, 5, 6)
        assert torch.equal(conv(x, weight), expected_conv(x, indices, codebook).float())

    def test_info(self, module, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(cuda_device, "facts_of", lambda index: H100)
        assert runtime.info() == {
            "reason": None,
            "torch": "13.0",
            "built": True,
            "cuda": "13.0",
            "architectures": [80, 86, 89, 90],
            "devices": [{"name": "NVIDIA H100", "capability": 90, "multiprocessors": 132, "supported": True}],
        }

    def test_info_without_cuda(self, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", None)
        monkeypatch.setattr(runtime, "_C_cuda", None)
        info = runtime.info()
        assert (info["built"], info["architectures"], info["devices"]) == (False, [], [])


@pytest.mark.skipif(importlib.util.find_spec("subbit_infer._C_cuda") is None, reason="the CUDA module is not built")
class TestModule:
    """The module itself, whose checks need no device."""

    SIZES = {  # noqa: RUF012
        "codewords": 32, "element": 0, "x_shape": (2, 8, 5, 6), "x_strides": (240, 30, 6, 1), "y_shape": (2, 10, 3, 4),
        "y_strides": (120, 12, 4, 1), "residual_strides": None, "packs": False, "stride": (1, 1), "padding": (0, 0),
        "dilation": (1, 1), "groups": 1, "binary": False, "sign_zero": False, "activation": 0, "capability": 90,
    }  # fmt: skip

    def conv(self, **changes):
        from subbit_infer import _C_cuda

        return _C_cuda.Conv(unit=_C_cuda.Unit.k3x3, **self.SIZES | changes)

    def test_what_it_was_built_for(self):
        from subbit_infer import _C_cuda

        assert _C_cuda.architectures == [80, 86, 89, 90]
        assert _C_cuda.version >= 12000

    def test_routes(self):
        assert self.conv().can_run("sharing")
        assert self.conv().can_run("product")
        assert not self.conv().can_run("sparse")
        assert self.conv(codewords=8).can_run("sparse")
        assert not self.conv(codewords=8, binary=True).can_run("sparse")
        with pytest.raises(ValueError, match="route must be one of sharing, product, sparse, got 'rows'"):
            self.conv().can_run("rows")

    @pytest.mark.parametrize(("capability", "weight", "scratch"), [(80, 2448, 0), (90, 2448, 0), (100, 1152, 960)])
    def test_later_gpus_multiply_bytes(self, capability, weight, scratch):
        """Bits: 16 outputs x 2 steps of 64 bytes, and 10 x 10 counts; bytes: 9 steps of 32 words, and 16 of a pixel."""
        conv = self.conv(binary=True, x_strides=None, capability=capability)
        assert conv.weight_bytes("product") == weight
        assert conv.scratch_bytes("product", x=16, x_nonzero=16) == scratch
        assert self.conv(capability=capability).weight_bytes("product") == 1152

    @pytest.mark.parametrize(("channels", "steps"), [(64, 1), (65, 2)])
    def test_64_channels_are_a_step_of_bytes(self, channels, steps):
        conv = self.conv(binary=True, x_shape=(2, channels, 5, 6), x_strides=None, capability=100)
        assert conv.weight_bytes("product") == steps * 1152

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"codewords": 257}, "codewords must be 1 to 256"),
            ({"element": 3}, "element must be 0 to 2"),
            ({"x_shape": (2, 8, 5, 1 << 31)}, r"height and width must be in \[0, 2\^31\)"),
            ({"x_shape": (1 << 40, 8, 5, 6), "y_shape": (1 << 40, 10, 3, 4)}, "the product of sizes overflows"),
            ({"x_shape": (2, -8, 5, 6)}, "sizes must not be negative"),
            ({"y_shape": (2, 10, 3, 5)}, "the output's height and width do not fit the input's"),
            ({"y_shape": (1, 10, 3, 4)}, "the output's sizes do not fit"),
            ({"groups": 3}, "groups must divide out_channels"),
            ({"stride": (0, 1)}, r"stride must be in \[1, 2\^31\)"),
            ({"padding": (-1, 0)}, r"padding must be in \[0, 2\^31\)"),
            ({"x_strides": None}, "packed input is binary"),
            ({"y_strides": None}, "there must be an output"),
            ({"activation": 4}, "activation must be 0 to 3"),
        ],
    )
    def test_sizes_are_checked(self, changes, message):
        with pytest.raises(ValueError, match=message):
            self.conv(**changes)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
    def test_errors_name_the_kernel_and_the_reason(self):
        names = "x x_nonzero indices codebook prepared_weight scale bias residual slope shift y y_plus y_nonzero"
        pointers = dict.fromkeys([*names.split(), "pack_shift", "scratch"], 0)
        with pytest.raises(RuntimeError, match=r"the kernel sharing could not be started on CUDA device 0: .+"):
            self.conv()(route="sharing", device=0, stream=0, **pointers)
        with pytest.raises(RuntimeError, match="the kernel prepare product could not be started"):
            self.conv().prepare(route="product", device=0, stream=0, indices=0, codebook=0, weight=0)
