"""The kernels on a device within torch: gradients, graphs, streams, threads, modules."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from device_tests import DEVICE, DTYPES, PLANS, REASON, count_for, plan_that_ran, weight_of
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, expected_conv, integers, random_weight

from subbit_infer import PackedWeight, conv, convert, explain, models, nn
from subbit_infer.backends.cuda import convolution

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(REASON is not None, reason=f"no CUDA kernels: {REASON}")]


class TestTorch:
    @pytest.mark.parametrize("activation", ["none", "prelu"])
    def test_gradients_are_those_of_the_cpu(self, plan, monkeypatch, activation):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # of torch's own gradient of x
        weight = PackedWeight.from_indices(*random_weight(UNIT_3X3, 10, 6, count_for(plan)))
        slope = torch.full((10,), 0.25) if activation == "prelu" else None
        given = {"x": integers(2, 6, 7, 8), "scale": torch.ones(10), "bias": integers(10), "slope": slope}
        grads = []
        for device in ("cpu", DEVICE):
            there = {name: None if t is None else t.to(device).detach().requires_grad_() for name, t in given.items()}
            x = there["x"]
            conv(indices=weight.to(device), padding=1, activation=activation, **there).square().sum().backward()
            assert x.grad is not None
            grads.append([t.grad.cpu() for t in there.values() if t is not None])
        for mine, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)

    def test_compile(self, plan):
        layer = nn.SubbitConv2d.from_indices(*random_weight(UNIT_3X3, 16, 16, count_for(plan)), padding=1).to(DEVICE)
        x = integers(2, 16, 9, 10).to(DEVICE)
        with torch.no_grad():
            compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
            assert torch.equal(compiled(x), layer(x))
            last = x.to(memory_format=torch.channels_last)
            assert compiled(last).stride() == layer(last).stride()

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_opcheck(self, plan, dtype, channels_last):
        weight = weight_of(*random_weight(UNIT_3X3, 10, 8, count_for(plan)))
        x = integers(2, 8, 7, 8).to(DEVICE, dtype)
        x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        geometry = ([1, 1], [1, 1], [1, 1], 1, weight.units, weight.codewords, list(weight.unit))
        scale = torch.ones(10, device=DEVICE)
        arguments = (x, weight.packed_indices, weight.packed_codebook, scale, None, None, None, None, "relu", *geometry)
        torch.library.opcheck(torch.ops.subbit_infer.conv2d.default, (*arguments, 32, 0))
        packed = (*arguments, 1, 0, None, None, 0, True, True)
        torch.library.opcheck(torch.ops.subbit_infer.conv2d_packed.default, packed)
        torch.library.opcheck(torch.ops.subbit_infer.pack.default, (x, None, 0))

    @pytest.mark.parametrize("activation_bits", [32, 1])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_capture(self, plan, activation_bits, dtype):
        weight = weight_of(*random_weight(UNIT_3X3, 40, 24, count_for(plan)))
        x = integers(2, 24, 9, 10).to(DEVICE, dtype)
        options = {
            "padding": 1,
            "activation_bits": activation_bits,
            "output": "both",
            "scale": torch.ones(40).to(DEVICE),
        }
        conv(x, weight, **options)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, packed = conv(x, weight, **options)
        for seed in (1, 2):
            x.copy_(integers(2, 24, 9, 10, seed=seed))
            graph.replay()
            expected, signs_expected = conv(x, weight, **options)
            assert torch.equal(y, expected)
            assert torch.equal(packed.plus, signs_expected.plus)

    def test_capture_of_a_weight_that_was_never_used_is_refused(self, planner):
        weight, x = weight_of(*random_weight(UNIT_3X3, 8, 8, 4)), torch.ones(1, 8, 5, 5, device=DEVICE)
        with pytest.raises(RuntimeError, match="call it once with such an input before the capture"):  # noqa: SIM117
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                conv(x, weight)
        torch.cuda.synchronize()
        conv(x, weight)

    def test_no_call_waits_for_the_device(self, plan):
        layer = nn.SubbitConv2d.from_indices(*random_weight(UNIT_3X3, 16, 16, count_for(plan)), padding=1).to(DEVICE)
        binary = nn.SubbitConv2d.from_indices(
            *random_weight(UNIT_3X3, 16, 16, count_for(plan)), padding=1, activation_bits=1, output="packed"
        ).to(DEVICE)
        x = integers(2, 16, 9, 10).to(DEVICE)
        with torch.no_grad():
            binary(binary(layer(x)))
            try:
                torch.cuda.set_sync_debug_mode("error")
                binary(binary(layer(x)))
            finally:
                torch.cuda.set_sync_debug_mode("default")

    def test_streams(self, plan):
        """A call comes after what its stream holds, and before what follows on it."""
        weight = weight_of(*random_weight(UNIT_3X3, 32, 32, count_for(plan)))
        x = integers(8, 32, 28, 28).to(DEVICE)
        expected = conv(x, weight, padding=1)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(20):
                late = torch.zeros_like(x)
                torch.cuda._sleep(2_000_000)
                late.copy_(x)
                y = conv(late, weight, padding=1)
                late.zero_()
                total = y.clone()
        stream.synchronize()
        assert torch.equal(total, expected)

    @pytest.mark.skipif(REASON is not None or torch.cuda.device_count() < 2, reason="one device")
    def test_devices(self, plan):
        weight, x = PackedWeight.from_indices(*random_weight(UNIT_3X3, 10, 12, count_for(plan))), integers(1, 12, 7, 8)
        results = []
        for index in (1, 0):  # the current device is 0
            y = conv(x.to(f"cuda:{index}"), weight.to(f"cuda:{index}"))
            assert y.device.index == index
            results.append(y.cpu())
        assert torch.equal(*results)
        assert torch.cuda.current_device() == 0
        with pytest.raises(ValueError, match="must be on one device"):
            conv(x.to("cuda:1"), weight.to("cuda:0"))

    def test_threads(self, kernels):
        indices, codebook = random_weight(UNIT_3X3, 20, 16, count_for(kernels))
        expected = [expected_conv(integers(1, 16, 9, 9 + i), indices, codebook, padding=1) for i in range(4)]
        weight, wrong = weight_of(indices, codebook), []

        def work(i: int) -> None:
            with torch.cuda.stream(torch.cuda.Stream()):
                x = integers(1, 16, 9, 9 + i).to(DEVICE)
                for _ in range(50):
                    y = conv(x, weight, padding=1).cpu()
                    if not torch.equal(y, expected[i].float()):
                        wrong.append(i)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert wrong == []

    def test_changes_in_place_are_seen(self, plan):
        indices, codebook = random_weight(UNIT_3X3, 10, 8, count_for(plan))
        weight, other = weight_of(indices, codebook), weight_of(indices.flip(0), codebook)
        x = integers(1, 8, 6, 7).to(DEVICE)
        conv(x, weight)
        weight.packed_indices.copy_(other.packed_indices)
        assert torch.equal(conv(x, weight), conv(x, other))

    def test_indices_out_of_range_are_refused(self, planner):
        weight = weight_of(*random_weight(UNIT_3X3, 10, 8, 5))
        weight.packed_indices.fill_(255)
        with pytest.raises(ValueError, match=r"indices must be in \[0, 5\)"):
            conv(torch.ones(1, 8, 5, 5, device=DEVICE), weight)


@pytest.mark.parametrize("fold", [False, True])
def test_convert_on_the_device(planner, fold):
    dense = models.resnet18(num_classes=10)
    models.make_subbit_weights(dense)
    dense = dense.to(DEVICE).eval()
    x = torch.rand(2, 3, 64, 64, device=DEVICE)
    converted, report = convert(dense, x, fold=fold, verify=True, tolerance=1e-3)
    assert len(report.converted) == 16
    assert converted(x).device == x.device


@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
@pytest.mark.parametrize("activation_bits", [32, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codewords", [4, 8, 32, 256])
def test_the_check_before_the_first_use(kernels, unit, codewords, dtype, activation_bits):
    assert convolution._is_right(kernels, DEVICE, unit, codewords, dtype, activation_bits == 1)


class TestModules:
    def test_cuda_and_back(self, planner):
        layer = nn.SubbitConv2d.from_indices(*random_weight(UNIT_3X3, 10, 8, 32), padding=1)
        x = integers(1, 8, 6, 7)
        expected = layer(x)
        assert torch.equal(layer.cuda()(x.to(DEVICE)).cpu(), expected)
        assert torch.equal(layer.cpu()(x), expected)

    def test_state_dict_stays_as_it_was(self, planner):
        layer = nn.SubbitConv2d.from_indices(*random_weight(UNIT_3X3, 10, 8, 32)).cuda()
        before = {name: t.clone() for name, t in layer.state_dict().items()}
        layer(torch.ones(1, 8, 5, 5, device=DEVICE))
        after = layer.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_explain(self, plan):
        layer = nn.SubbitConv2d.from_indices(*random_weight(UNIT_3X3, 64, 64, count_for(plan)), padding=1).cuda()
        explanation = explain(layer, torch.ones(4, 64, 14, 14, device=DEVICE), print=None)
        (said,) = explanation.layers
        assert (said.plan, said.device) == (plan, "cuda")
        assert plan_that_ran(layer.packed_weight()) == {plan}
        assert {c.plan for c in said.candidates} == set(PLANS) - ({"sparse"} if plan != "sparse" else set())
        assert torch.cuda.get_device_name(0) in str(explanation)

    def test_other_units_run_the_reference(self, planner):
        indices, codebook = random_weight((1, 2, 3), 6, 4, 8)
        x = integers(1, 4, 6, 7)
        y = conv(x.to(DEVICE), weight_of(indices, codebook))
        assert torch.equal(y.cpu(), F.conv2d(x, dense_weight(indices, codebook)))
