from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from dense_layers import conv, linear
from helpers import integers
from torch import nn

from subbit_infer.conversion.modules.observe import Frame, Observer, quiet, run
from subbit_infer.nn import SubbitConv2d

X = integers(2, 8, 5, 5)
VECTORS = integers(3, 16)
CONV = conv(bias=True, padding=1)
LINEAR = linear()


class Computes(nn.Module):
    def __init__(self, compute) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x):
        return self.compute(x)


def frames_of(model: nn.Module, *inputs: torch.Tensor) -> list[Frame]:
    """The frames of modules that compute something."""
    observer, found = Observer(), []
    with quiet(model), observer.watch(model, lambda frame, args, kwargs, output: found.append(frame)):
        run(model, inputs)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return found


@pytest.mark.parametrize(
    "compute",
    [
        CONV,
        lambda x: F.conv2d(x, CONV.weight, CONV.bias, 1, 1),
        lambda x: torch.conv2d(bias=CONV.bias, padding=(1, 1), input=x, weight=CONV.weight),
        lambda x: torch.ops.aten.convolution(x, CONV.weight, CONV.bias, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        lambda x: torch.convolution(x, CONV.weight, CONV.bias, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    ],
)
def test_convolutions_however_they_are_called(compute):
    (frame,) = frames_of(Computes(compute), X)
    (call,) = frame.calls
    assert call.kind == "conv2d"
    assert call.geometry == {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    assert torch.equal(call.weight, CONV.weight)
    assert torch.equal(call.bias, CONV.bias)
    assert torch.equal(call.x, X)
    assert torch.equal(call.output, CONV(X))


@pytest.mark.parametrize(
    ("compute", "has_bias"),
    [
        (LINEAR, True),
        (lambda x: F.linear(x, LINEAR.weight), False),
        (lambda x: x @ LINEAR.weight.t(), False),
        (lambda x: torch.addmm(LINEAR.bias, x, LINEAR.weight.t()), True),
        (lambda x: torch.addmm(LINEAR.bias, x, LINEAR.weight.t(), alpha=2), False),  # what is after it shows there
    ],
)
def test_linear_layers_however_they_are_called(compute, has_bias):
    (frame,) = frames_of(Computes(compute), VECTORS)
    (call,) = frame.calls
    assert (call.kind, call.geometry) == ("linear", {})
    assert torch.equal(call.weight, LINEAR.weight)
    assert (call.bias is not None) == has_bias
    assert torch.equal(call.x, VECTORS)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: F.conv_transpose2d(x, torch.ones(8, 4, 3, 3)),
        lambda x: F.conv1d(x[0], torch.ones(4, 5, 3)),
        lambda x: x @ x.mT,
        lambda x: x.flatten(1) @ torch.randn(200, 5),
        lambda x: x.relu(),
    ],
)
def test_what_is_no_such_layer(compute):
    assert frames_of(Computes(compute), X) == []


def test_frames_are_those_of_the_innermost_modules():
    model = nn.Sequential(
        CONV, nn.Sequential(nn.ReLU(), Computes(lambda x: F.conv2d(x, CONV.weight[:, :1].repeat(1, 12, 1, 1))))
    )
    frames = frames_of(model, X)
    assert [frame.module for frame in frames] == [model[0], model[1][1]]
    assert not any(frame.has_inner for frame in frames)


def test_memory_of_several_calls_is_free():
    (frame,) = frames_of(Computes(lambda x: CONV.forward(x) + CONV.forward(-x)), X)
    assert [(call.x, call.output) for call in frame.calls] == [(None, None)] * 2


def test_inner_calls_are_told():
    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return F.conv2d(self.inner(x), torch.ones(1, 12, 1, 1))

    assert [frame.has_inner for frame in frames_of(Outer(CONV), X)] == [False, True]
    assert [frame.has_inner for frame in frames_of(Outer(SubbitConv2d.from_dense(CONV)), X)] == [True]


def test_a_failure_that_the_model_catches():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    class Catches(nn.Module):
        def __init__(self):
            super().__init__()
            self.fails = Fails()

        def forward(self, x):
            try:
                return self.fails(x)
            except RuntimeError:
                return F.conv2d(x, CONV.weight)

    model = Catches()
    assert [frame.module for frame in frames_of(model, X)] == [model]


def test_a_weight_is_what_it_was_in_the_call():
    weight = CONV.weight.detach().clone()

    def compute(x):
        y = F.conv2d(x, weight)
        weight.zero_()
        return y

    (frame,) = frames_of(Computes(compute), X)
    assert torch.equal(frame.calls[0].weight, CONV.weight)


def test_a_probe_is_a_run_of_its_own():
    model = nn.Sequential(Computes(lambda x: F.conv2d(x.sign(), CONV.weight).relu_()))
    observer, probes = Observer(), []

    def probe(frame, args, kwargs, output):
        assert len(frame.calls) == 1
        probes.append(observer.probe(frame.module, -args[0]))

    with quiet(model), observer.watch(model, probe):
        run(model, X)
    ((frame, output),) = probes
    (call,) = frame.calls
    assert torch.equal(call.x, -X.sign())
    assert torch.equal(call.output.relu(), output)
    assert (call.output < 0).any()
