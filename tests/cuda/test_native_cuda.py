"""What is between torch and the CUDA kernels, without a device: by a stand-in that computes what launches ask for."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re

import fake_cuda
import pytest
import torch
from helpers import UNIT_1X1, UNIT_3X3, expected_conv, integers, random_weight, signs
from torch.nn import functional as F

from subbit_infer import PackedWeight, backends, conv, pack
from subbit_infer import explain as explain_function
from subbit_infer.backends.cuda import convolution, packing, planner, runtime
from subbit_infer.backends.cuda import cudnn as cudnn_module
from subbit_infer.backends.cuda import device as devices
from subbit_infer.backends.cuda import weight as weights
from subbit_infer.core.activations import pack_signs
from subbit_infer.core.epilogue import Epilogue
from subbit_infer.nn import SubbitConv2d
from subbit_infer.ops import functional, repeat

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
H100 = devices.Device("NVIDIA H100", 90, 132)
B200 = devices.Device("NVIDIA B200", 100, 148)
IS_RIGHT = convolution._is_right
FIRST = torch.device("cuda", 0)
explain = importlib.import_module("subbit_infer.diagnostics.plans")  # the name is the function's in the package


@pytest.fixture
def module(monkeypatch):
    """The stand-in in the place of the module, CPU tensors in the place of a device's."""
    module = fake_cuda.Module()
    monkeypatch.delenv("SUBBIT_PLAN", raising=False)
    monkeypatch.setattr(runtime, "_C_cuda", module)
    monkeypatch.setattr(runtime, "is_built", lambda: True)
    monkeypatch.setattr(convolution, "_is_right", lambda *kind: True)
    monkeypatch.setattr(devices, "device_of", lambda device: H100)
    monkeypatch.setattr(devices, "stream_of", lambda device: contextlib.nullcontext(fake_cuda.STREAM))
    original = backends.backend_of
    monkeypatch.setattr(backends, "backend_of", lambda device, unit: original(FIRST, unit))
    return module


@pytest.fixture
def cudnn(monkeypatch):
    """torch's CPU convolution in the place of cuDNN's; what it was asked for."""
    calls = []

    def dense_sums(x, weight, stride, padding, dilation, groups, *, allow_tf32):
        calls.append((x.dtype, weight.dtype, allow_tf32))
        return F.conv2d(x.float(), weight.float(), None, stride, padding, dilation, groups).to(x.dtype)

    monkeypatch.setattr(cudnn_module, "has_cudnn", lambda x, sizes: True)
    monkeypatch.setattr(cudnn_module, "dense_sums", dense_sums)
    return calls


def count_for(plan):
    """Codewords of a weight that the plan has kernels for."""
    return 8 if plan == "sparse" else 32


@pytest.fixture(autouse=True)
def has_a_kernel(request):
    """Skips what the sparse route has no kernel for."""
    given = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if given.get("plan") == "sparse" and (given.get("activation_bits") == 1 or given.get("unit") == UNIT_1X1):
        pytest.skip("the sparse route has no kernel for signs and for 1x1 units")


def packed(unit=UNIT_3X3, out_channels=10, units=8, codewords=32):
    indices, codebook = random_weight(unit, out_channels, units, codewords)
    return PackedWeight.from_indices(indices, codebook), indices, codebook


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
        monkeypatch.setattr(devices, "device_of", lambda device: devices.Device("Tesla T4", 75, 40))
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
        monkeypatch.setattr(devices, "facts_of", lambda index: H100)
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
    def test_later_gpus_multiply_bytes_of_signs(self, capability, weight, scratch):
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


@pytest.mark.parametrize("plan", ["sharing", "product", "sparse", "dense"])
@pytest.mark.parametrize("activation_bits", [32, 1])
class TestCalls:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
    def test_every_argument_arrives(
        self, module, cudnn, monkeypatch, plan, activation_bits, dtype, channels_last, unit
    ):
        monkeypatch.setenv("SUBBIT_PLAN", plan)
        weight, indices, codebook = packed(unit, 12, 5, min(27, count_for(plan)))
        channels = 5 * unit[0] * 2
        x = integers(2, channels, 9, 8).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
        sums = expected_conv(x.float(), indices, codebook, activation_bits=activation_bits, **options).float()
        vectors = {name: integers(12, seed=i) / 4 for i, name in enumerate(("scale", "bias", "slope", "shift"))}
        residual = integers(*sums.shape, seed=9).to(dtype)
        v = sums * vectors["scale"][:, None, None] + vectors["bias"][:, None, None] + residual.float()
        v = torch.where(v > 0, v, vectors["slope"][:, None, None] * v) + vectors["shift"][:, None, None]
        pack_shift = integers(12, seed=7)
        y, words = conv(
            x, weight, activation_bits=activation_bits, residual=residual, activation="prelu", output="both",
            pack_shift=pack_shift, **vectors, **options,
        )  # fmt: skip
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        assert torch.equal(y, v.to(dtype))
        assert torch.equal(words.unpack(), (v + pack_shift[:, None, None]).sign())
        assert module.launches == ([] if plan == "dense" else [plan])

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_call_without_options(self, module, cudnn, monkeypatch, plan, activation_bits, dtype):
        monkeypatch.setenv("SUBBIT_PLAN", plan)
        weight, indices, codebook = packed(codewords=count_for(plan))
        x = integers(2, 8, 5, 6).to(dtype)
        expected = expected_conv(x.float(), indices, codebook, activation_bits=activation_bits)
        for activation in ("none", "relu"):
            y = conv(x, weight, activation_bits=activation_bits, activation=activation)
            assert torch.equal(y, (expected.relu() if activation == "relu" else expected).to(dtype))
        for used, of_weight, allow_tf32 in cudnn:
            binary = activation_bits == 1
            assert used == of_weight == (torch.float32 if binary else dtype)
            assert allow_tf32 == (dtype != torch.float32 and not binary)

    def test_scaled_halves_are_convolved_in_float32(self, module, cudnn, monkeypatch, plan, activation_bits):
        monkeypatch.setenv("SUBBIT_PLAN", plan)
        weight, indices, codebook = packed(units=512, codewords=count_for(plan))
        x = integers(1, 512, 5, 6).half() * 32  # sums beyond the halves, which the scale brings back
        y = conv(x, weight, activation_bits=activation_bits, scale=torch.full((10,), 2.0**-6))
        expected = expected_conv(x.float(), indices, codebook, activation_bits=activation_bits) * 2.0**-6
        assert torch.equal(y, expected.half())
        assert all(used == torch.float32 for used, _, _ in cudnn)

    def test_residual_of_another_dtype(self, module, cudnn, monkeypatch, plan, activation_bits):
        monkeypatch.setenv("SUBBIT_PLAN", plan)
        weight, indices, codebook = packed(codewords=count_for(plan))
        x, residual = integers(1, 8, 5, 6).half(), torch.full((1, 10, 3, 4), 1 + 2.0**-20)
        y = conv(x, weight, residual=residual, activation_bits=activation_bits, shift=torch.full((10,), -1.0))
        sums = expected_conv(x.float(), indices, codebook, activation_bits=activation_bits).float()
        assert y.dtype == torch.float16
        assert torch.equal(y, (sums + residual - 1).half())

    def test_empty_batch(self, module, monkeypatch, plan, activation_bits):
        monkeypatch.setenv("SUBBIT_PLAN", plan)
        y = conv(torch.empty(0, 8, 5, 6), packed(codewords=count_for(plan))[0], activation_bits=activation_bits)
        assert y.shape == (0, 10, 3, 4)
        assert module.launches == []


@pytest.mark.parametrize("plan", ["sharing", "product", "dense"])
@pytest.mark.parametrize("has_zeros", [True, False])
@pytest.mark.parametrize("pack_sign_zero", [0, 1])
def test_packed_in_and_out(module, cudnn, monkeypatch, plan, has_zeros, pack_sign_zero):
    monkeypatch.setenv("SUBBIT_PLAN", plan)
    weight, indices, codebook = packed(out_channels=70, units=66)
    x = integers(2, 66, 5, 6)
    given = pack(x, None, 0 if has_zeros else 1)
    expected = expected_conv(signs(x, 0 if has_zeros else 1), indices, codebook).float()
    for output in ("float", "packed", "both"):
        result = conv(given, weight, output=output, pack_sign_zero=pack_sign_zero if output != "float" else 0)
        floats = result if output == "float" else result[0] if output == "both" else None
        words = result if output == "packed" else result[1] if output == "both" else None
        assert floats is None or torch.equal(floats, expected)
        assert words is None or torch.equal(words.unpack(), signs(expected, pack_sign_zero))


def test_without_cudnn_the_reference_runs_densely(module, monkeypatch):
    monkeypatch.setenv("SUBBIT_PLAN", "dense")
    weight, indices, codebook = packed()
    x = integers(1, 8, 5, 6)
    assert not cudnn_module.has_cudnn(x, (1, 10, 3, 4)) or torch.backends.cudnn.is_available()
    monkeypatch.setattr(cudnn_module, "has_cudnn", lambda x, sizes: False)
    assert torch.equal(conv(x, weight), expected_conv(x, indices, codebook).float())
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    assert cudnn_module.has_cudnn(x, (1, 10, 3, 4))
    assert not cudnn_module.has_cudnn(x, (1 << 16, 1 << 15, 1, 1))


@pytest.mark.parametrize("sign_zero", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pack(module, sign_zero, dtype):
    x, shift = integers(2, 70, 3, 4).to(dtype).transpose(2, 3), integers(70, seed=1)
    packed = pack(x, shift.double(), sign_zero)
    plus, nonzero = pack_signs(x, shift, sign_zero)
    assert module.launches == ["pack"]
    assert torch.equal(packed.plus, plus)
    assert packed.nonzero is None if sign_zero else torch.equal(packed.nonzero, nonzero)


def test_pack_by_torch(module, monkeypatch):
    monkeypatch.setenv("SUBBIT_PLAN", "dense")
    x = integers(1, 5, 3, 4)
    assert torch.equal(pack(x).plus, pack_signs(x, None, 0)[0])
    monkeypatch.delenv("SUBBIT_PLAN")
    assert pack(x[:0]).plus.shape == (0, 3, 4, 1)
    monkeypatch.setattr(runtime, "is_built", lambda: False)
    assert torch.equal(pack(x).plus, pack_signs(x, None, 0)[0])
    assert module.launches == []


def test_without_kernels_the_reference_runs(module, monkeypatch):
    weight, indices, codebook = packed((1, 2, 3))
    x = integers(1, 8, 5, 6)
    assert torch.equal(conv(x, weight), expected_conv(x, indices, codebook).float())
    monkeypatch.setattr(runtime, "is_built", lambda: False)
    weight, indices, codebook = packed()
    assert torch.equal(conv(x, weight), expected_conv(x, indices, codebook).float())
    assert module.launches == []


class TestPlans:
    @pytest.mark.parametrize("only", ["sharing", "product", "sparse"])
    def test_only_what_can_run(self, module, only):
        module.routes = {only}
        weight, _, _ = packed(out_channels=64, units=64, codewords=4)
        conv(integers(2, 64, 14, 14), weight, bias=torch.ones(64))
        assert set(module.launches) <= {only}
        prepared = weights.find_prepared(weight.packed_indices, weight.packed_codebook, 64, 4, UNIT_3X3)
        (planned,) = prepared.convs.values()
        assert {c.plan for c in planned.candidates} == {only, "dense"}

    def test_a_plan_that_cannot_run_leaves_it_to_the_quickest(self, module, monkeypatch):
        module.routes = {"product"}
        monkeypatch.setenv("SUBBIT_PLAN", "sharing")
        conv(integers(2, 64, 14, 14), packed(out_channels=64, units=64)[0], bias=torch.ones(64))
        assert module.launches == ["product"]

    def test_unknown_names_are_refused(self, module, monkeypatch):
        monkeypatch.setenv("SUBBIT_PLAN", "magic")
        with pytest.raises(ValueError, match=r"SUBBIT_PLAN must be auto, .*, sparse or dense, got 'magic'"):
            conv(integers(2, 8, 5, 6), packed()[0])

    def test_a_size_is_planned_once(self, module, monkeypatch):
        asked = []
        original = planner.candidates
        monkeypatch.setattr(planner, "candidates", lambda *given: asked.append(1) or original(*given))
        weight, _, _ = packed()
        for _ in range(3):
            conv(integers(2, 8, 5, 6), weight)
        assert len(asked) == 1
        conv(integers(2, 8, 5, 7), weight)
        assert len(asked) == 2

    def test_plans_are_not_kept_for_ever(self, module, monkeypatch):
        monkeypatch.setenv("SUBBIT_PLAN", "sharing")
        weight, _, _ = packed()
        for width in range(3, 3 + 40):
            conv(integers(1, 8, 3, width), weight)
        prepared = weights.find_prepared(weight.packed_indices, weight.packed_codebook, 8, 32, UNIT_3X3)
        assert 0 < len(prepared.convs) <= convolution._MOST_CONVS

    def test_the_products_weight_is_prepared_once(self, module, monkeypatch):
        monkeypatch.setenv("SUBBIT_PLAN", "product")
        weight, _, _ = packed()
        for dtype in DTYPES:
            conv(integers(2, 8, 5, 6).to(dtype), weight)
        assert module.prepares == 1
        conv(integers(2, 8, 5, 6), weight, activation_bits=1)
        assert module.prepares == 2

    def test_the_products_weight_is_one_of_the_devices_capability(self, module, monkeypatch):
        monkeypatch.setenv("SUBBIT_PLAN", "product")
        weight, _, _ = packed()
        for width, device in enumerate((H100, B200), start=5):
            monkeypatch.setattr(devices, "device_of", lambda _, device=device: device)
            conv(integers(2, 8, 5, width), weight, activation_bits=1)
        assert module.prepares == 2
        prepared = weights.find_prepared(weight.packed_indices, weight.packed_codebook, 8, 32, UNIT_3X3)
        assert [made.conv.given["capability"] for made in prepared.convs.values()] == [90, 100]


class TestCheck:
    """Kernels are tried out before their first use on a device."""

    @pytest.fixture
    def tried(self, module, monkeypatch):
        monkeypatch.setattr(convolution, "_is_right", IS_RIGHT)
        IS_RIGHT.cache_clear()
        yield module
        IS_RIGHT.cache_clear()

    @pytest.mark.parametrize("activation_bits", [32, 1])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
    @pytest.mark.parametrize("plan", ["sharing", "product", "sparse"])
    def test_once_for_a_kind(self, tried, monkeypatch, plan, unit, dtype, activation_bits):
        monkeypatch.setenv("SUBBIT_PLAN", plan)
        weight, indices, codebook = packed(unit, codewords=count_for(plan))
        x = integers(2, 8 * unit[0], 5, 6).to(dtype)
        expected = expected_conv(x, indices, codebook, activation_bits=activation_bits).to(dtype)
        for _ in range(2):
            assert torch.equal(conv(x, weight, activation_bits=activation_bits), expected)
        assert tried.launches == [plan] * 4
        conv(
            integers(1, 8 * unit[0], 9, 9).to(dtype),
            packed(unit, codewords=count_for(plan))[0],
            activation_bits=activation_bits,
        )
        assert tried.launches == [plan] * 5

    def test_another_kind_is_tried_too(self, tried, monkeypatch):
        monkeypatch.setenv("SUBBIT_PLAN", "sharing")
        for count, codewords in enumerate((32, 4, 256), 1):
            conv(integers(2, 8, 5, 6), packed(codewords=codewords)[0])
            assert len(tried.launches) == 3 * count

    def test_what_is_wrong_is_not_used(self, tried, monkeypatch):
        monkeypatch.setenv("SUBBIT_PLAN", "sharing")
        tried.wrong = {"sharing"}
        weight, indices, codebook = packed()
        x = integers(2, 8, 5, 6)
        with pytest.warns(RuntimeWarning, match="the plan 'sharing' compute wrong results on cpu .NVIDIA H100. with"):
            y = conv(x, weight, bias=torch.zeros(10))
        assert torch.equal(y, expected_conv(x, indices, codebook).float())
        assert tried.launches == ["sharing", "product", "product", "product"]

    def test_where_all_are_wrong_the_convolution_is_dense(self, tried, cudnn, monkeypatch):
        monkeypatch.setenv("SUBBIT_PLAN", "sharing")
        tried.wrong = {"sharing", "product"}
        weight, indices, codebook = packed()
        x = integers(2, 8, 5, 6)
        with pytest.warns(RuntimeWarning):
            y = conv(x, weight)
        assert torch.equal(y, expected_conv(x, indices, codebook).float())
        assert len(cudnn) == 1

    def test_not_within_a_capture(self, tried, monkeypatch):
        monkeypatch.setenv("SUBBIT_PLAN", "sharing")
        weight, x = packed()[0], integers(2, 8, 5, 6)
        monkeypatch.setattr(convolution, "_is_right", lambda *kind: True)
        conv(x, weight)
        monkeypatch.setattr(convolution, "_is_right", IS_RIGHT)
        monkeypatch.setattr(devices, "is_capturing", lambda device: True)
        conv(x, weight)  # planned already
        with pytest.raises(RuntimeError, match="call it once with such an input before the capture"):
            conv(x.half(), weight)


class TestWeights:
    @pytest.mark.parametrize("codewords", [1, 2, 3, 5, 16, 17, 32, 100, 256])
    @pytest.mark.parametrize("units", [1, 3, 8, 13, 64])
    def test_every_tau_and_row_length(self, module, monkeypatch, codewords, units):
        monkeypatch.setenv("SUBBIT_PLAN", "sharing")
        for unit in (UNIT_3X3, UNIT_1X1):
            weight, indices, codebook = packed(unit, 7, units, codewords)
            x = integers(1, units * unit[0], 4, 5)
            assert torch.equal(conv(x, weight), expected_conv(x, indices, codebook).float())

    def test_prepared_once(self, module):
        weight, _, _ = packed()
        arguments = weight.packed_indices, weight.packed_codebook, weight.units, weight.codewords, weight.unit
        assert weights.find_prepared(*arguments) is None
        prepared = weights.prepare(*arguments)
        assert weights.prepare(*arguments) is prepared
        assert weights.find_prepared(*arguments) is prepared

    @pytest.mark.parametrize("inference", [False, True])
    def test_changes_in_place_are_seen(self, module, monkeypatch, inference):
        monkeypatch.setenv("SUBBIT_PLAN", "sharing")
        with torch.inference_mode(inference):
            weight, indices, codebook = packed()
            x = integers(1, 8, 5, 6)
            conv(x, weight)
            weight.packed_indices.copy_(weight.packed_indices.flip(0))
            assert torch.equal(conv(x, weight), expected_conv(x, indices.flip(0), codebook).float())

    def test_indices_out_of_range(self, module):
        weight, _, _ = packed(codewords=5)
        weight.packed_indices.fill_(255)
        with pytest.raises(
            ValueError, match=r"indices must be in \[0, 5\), the number of codewords; indices\[0, 0\] is 7"
        ):
            conv(integers(1, 8, 5, 6), weight)

    @pytest.mark.parametrize("plan", ["sharing", "product", "sparse", "dense"])
    def test_captures_need_a_call_before_them(self, module, cudnn, monkeypatch, plan):
        monkeypatch.setenv("SUBBIT_PLAN", plan)
        weight, x = packed(codewords=count_for(plan))[0], integers(1, 8, 5, 6)
        message = "call it once with such an input before the capture"
        with monkeypatch.context() as capturing:
            capturing.setattr(devices, "is_capturing", lambda device: True)
            with pytest.raises(RuntimeError, match=message):
                conv(x, weight)
        y = conv(x, weight)
        with monkeypatch.context() as capturing:
            capturing.setattr(devices, "is_capturing", lambda device: True)
            assert torch.equal(conv(x, weight), y)
            if plan == "product":  # signs need another form of the weight
                with pytest.raises(RuntimeError, match=message):
                    conv(x, weight, activation_bits=1)


class TestExplain:
    """What is said of a layer on a GPU."""

    @pytest.fixture
    def on_gpu(self, module, monkeypatch):
        """Has CPU tensors say that they are on a GPU."""
        original = explain._Seen
        monkeypatch.setattr(explain, "_Seen", lambda *given: original(*given)._replace(device=FIRST))
        return module

    @pytest.mark.parametrize("plan", ["sharing", "product", "sparse"])
    def test_layers(self, on_gpu, monkeypatch, plan):
        monkeypatch.setenv("SUBBIT_PLAN", plan)
        layer = SubbitConv2d.from_indices(*random_weight(UNIT_3X3, 64, 64, 4), padding=1)
        explanation = explain_function(layer, integers(4, 64, 14, 14), print=None)
        (said,) = explanation.layers
        assert on_gpu.launches == [plan]
        assert (said.device, said.plan, said.kernel, said.level) == ("cuda", plan, f"cuda_{plan}", "sm_90")
        assert {c.plan for c in said.candidates} == {"sharing", "product", "sparse", "dense"}
        assert (said.macs_saved > 0) == (plan in ("sharing", "sparse"))
        text = str(explanation).splitlines()
        assert text[0] == f"SubbitConv2d: 1 call of sub-bit layers, NVIDIA H100 (sm_90), SUBBIT_PLAN={plan}"
        assert text[-1].startswith("Predicted, an image on the GPU (calculated, not measured): ")
        forced = said.plan != said.candidates[0].plan
        assert said.reason.startswith(f"{plan}: {'forced by' if forced else ''}")

    def test_times_are_an_images(self, on_gpu):
        layer = SubbitConv2d.from_indices(*random_weight(UNIT_3X3, 64, 64, 32), padding=1, scale=torch.ones(64))
        (said,) = explain_function(layer, integers(4, 64, 14, 14), print=None).layers
        prepared = weights.prepare(layer.packed_indices, layer.packed_codebook, 64, 32, UNIT_3X3)
        (planned,) = prepared.convs.values()
        assert [c.microseconds * 4 for c in said.candidates] == [c.microseconds for c in planned.candidates]

    def test_without_the_module(self, on_gpu, monkeypatch):
        monkeypatch.setattr(runtime, "reason", lambda: "none was built")
        layer = SubbitConv2d.from_indices(*random_weight((1, 2, 3), 8, 8, 4))
        (said,) = explain_function(layer, integers(1, 8, 5, 5), print=None).layers
        assert (said.plan, said.reason) == ("reference", "reference: no kernel for units of (1, 2, 3)")
        layer.unit = UNIT_3X3
        assert explain._why_not(layer, FIRST) == "none was built"


class TestRepeats:
    """A call that was made before is made again without checks."""

    @pytest.fixture
    def seen(self, module, monkeypatch):
        """Has CPU tensors run as a device's do; the calls that were checked."""
        checked = []
        original = functional.convolve
        monkeypatch.setattr(functional, "convolve", lambda *a, **k: checked.append(1) or original(*a, **k))
        monkeypatch.setattr(repeat, "_runs_on_cuda", lambda x: True)
        return checked

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("plan", ["sharing", "product", "sparse"])
    def test_floats(self, module, seen, monkeypatch, plan, dtype):
        monkeypatch.setenv("SUBBIT_PLAN", plan)
        weight, indices, codebook = packed(codewords=count_for(plan))
        residual, bias = integers(2, 10, 3, 4).to(dtype), torch.arange(10.0)
        for x in (integers(2, 8, 5, 6).to(dtype), integers(2, 8, 5, 6, seed=1).to(dtype)):
            y = conv(x, weight, bias=bias, residual=residual, activation="relu")
            expected = Epilogue(None, bias, residual.double(), "relu").apply(expected_conv(x, indices, codebook))
            assert y.dtype == dtype
            assert torch.equal(y, expected.to(dtype))
        assert (len(seen), module.launches) == (1, [plan, plan])

    def test_packed(self, module, seen, monkeypatch):
        monkeypatch.setenv("SUBBIT_PLAN", "product")
        weight, indices, codebook = packed()
        for seed in (0, 1):
            x = integers(2, 8, 5, 6, seed=seed)
            y = conv(pack(x), weight, output="packed").unpack()
            assert torch.equal(y, expected_conv(x, indices, codebook, activation_bits=1).sign().float())
        assert len(seen) == 1

    def test_what_differs_is_checked(self, module, seen, monkeypatch):
        monkeypatch.setenv("SUBBIT_PLAN", "sharing")
        weight, _, _ = packed()
        x, residual = integers(2, 8, 5, 6), integers(2, 10, 3, 4)
        conv(x, weight, residual=residual)
        others = (
            lambda: conv(x.half(), weight, residual=residual),
            lambda: conv(x, weight),
            lambda: conv(x.to(memory_format=torch.channels_last), weight, residual=residual),
            lambda: conv(x, weight, residual=residual, bias=torch.zeros(10)),
            lambda: conv(x, weight, residual=residual.half()),
        )
        for number, call in enumerate(others, 2):
            call()
            assert len(seen) == number
        with pytest.raises(ValueError, match="residual"):
            conv(x, weight, residual=residual[:1])

    def test_a_weight_that_changed_is_prepared_again(self, module, seen, monkeypatch):
        monkeypatch.setenv("SUBBIT_PLAN", "sharing")
        weight, indices, codebook = packed()
        x = integers(2, 8, 5, 6)
        conv(x, weight)
        weight.packed_indices.copy_(weight.packed_indices.flip(0))
        assert torch.equal(conv(x, weight), expected_conv(x, indices.flip(0), codebook).float())
        assert len(seen) == 2

    def test_dense_and_empty_calls_are_kept_too(self, module, seen, cudnn, monkeypatch):
        monkeypatch.setenv("SUBBIT_PLAN", "dense")
        weight, _, _ = packed()
        for x in (integers(2, 8, 5, 6), integers(2, 8, 5, 6)[:0]):
            for _ in range(2):
                conv(x, weight)
        assert len(seen) == 2
