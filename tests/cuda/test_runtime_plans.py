"""Routes chosen and tried out, weights kept, plans explained; by a stand-in for the CUDA kernels."""

from __future__ import annotations

import pytest
import torch
from helpers import UNIT_1X1, UNIT_3X3, expected_conv, integers, random_weight
from stand_in import B200, DTYPES, FIRST, H100, IS_RIGHT, count_for, packed

from subbit_infer import conv, explain
from subbit_infer.backends.cuda import convolution, runtime
from subbit_infer.backends.cuda import device as cuda_device
from subbit_infer.backends.cuda import planner as cuda_planner
from subbit_infer.backends.cuda import weight as cuda_weight
from subbit_infer.diagnostics import plans
from subbit_infer.nn import SubbitConv2d


class TestPlans:
    @pytest.mark.parametrize("only", ["sharing", "product", "sparse"])
    def test_only_what_can_run(self, module, only):
        module.routes = {only}
        weight, _, _ = packed(out_channels=64, units=64, codewords=4)
        conv(integers(2, 64, 14, 14), weight, bias=torch.ones(64))
        assert set(module.launches) <= {only}
        prepared = cuda_weight.find_prepared(weight.packed_indices, weight.packed_codebook, 64, 4, UNIT_3X3)
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
        original = cuda_planner.candidates
        monkeypatch.setattr(cuda_planner, "candidates", lambda *given: asked.append(1) or original(*given))
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
        prepared = cuda_weight.find_prepared(weight.packed_indices, weight.packed_codebook, 8, 32, UNIT_3X3)
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
            monkeypatch.setattr(cuda_device, "device_of", lambda _, device=device: device)
            conv(integers(2, 8, 5, width), weight, activation_bits=1)
        assert module.prepares == 2
        prepared = cuda_weight.find_prepared(weight.packed_indices, weight.packed_codebook, 8, 32, UNIT_3X3)
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
        monkeypatch.setattr(cuda_device, "is_capturing", lambda device: True)
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
        assert cuda_weight.find_prepared(*arguments) is None
        prepared = cuda_weight.prepare(*arguments)
        assert cuda_weight.prepare(*arguments) is prepared
        assert cuda_weight.find_prepared(*arguments) is prepared

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
            capturing.setattr(cuda_device, "is_capturing", lambda device: True)
            with pytest.raises(RuntimeError, match=message):
                conv(x, weight)
        y = conv(x, weight)
        with monkeypatch.context() as capturing:
            capturing.setattr(cuda_device, "is_capturing", lambda device: True)
            assert torch.equal(conv(x, weight), y)
            if plan == "product":  # signs need another form of the weight
                with pytest.raises(RuntimeError, match=message):
                    conv(x, weight, activation_bits=1)


class TestExplain:
    """What is said of a layer on a GPU."""

    @pytest.fixture
    def on_gpu(self, module, monkeypatch):
        """Has CPU tensors say that they are on a GPU."""
        original = plans._Seen
        monkeypatch.setattr(plans, "_Seen", lambda *given: original(*given)._replace(device=FIRST))
        return module

    @pytest.mark.parametrize("plan", ["sharing", "product", "sparse"])
    def test_layers(self, on_gpu, monkeypatch, plan):
        monkeypatch.setenv("SUBBIT_PLAN", plan)
        layer = SubbitConv2d.from_indices(*random_weight(UNIT_3X3, 64, 64, 4), padding=1)
        explanation = explain(layer, integers(4, 64, 14, 14), print=None)
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
        (said,) = explain(layer, integers(4, 64, 14, 14), print=None).layers
        prepared = cuda_weight.prepare(layer.packed_indices, layer.packed_codebook, 64, 32, UNIT_3X3)
        (planned,) = prepared.convs.values()
        assert [c.microseconds * 4 for c in said.candidates] == [c.microseconds for c in planned.candidates]

    def test_without_the_module(self, on_gpu, monkeypatch):
        monkeypatch.setattr(runtime, "reason", lambda: "none was built")
        layer = SubbitConv2d.from_indices(*random_weight((1, 2, 3), 8, 8, 4))
        (said,) = explain(layer, integers(1, 8, 5, 5), print=None).layers
        assert (said.plan, said.reason) == ("reference", "reference: no kernel for units of (1, 2, 3)")
        layer.unit = UNIT_3X3
        assert plans._why_not(layer, FIRST) == "none was built"
