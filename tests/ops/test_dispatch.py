"""conv calls its kernel directly only where nobody else wants to see the operator."""

from __future__ import annotations

import pytest
import torch
from helpers import UNIT_3X3, integers, random_weight
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from subbit_infer import PackedWeight, conv, pack
from subbit_infer.ops import functional


@pytest.fixture
def weight():
    return PackedWeight.from_indices(*random_weight(UNIT_3X3, 10, 12, 32))


@pytest.fixture
def direct_calls(monkeypatch):
    """Counts the calls that go round the dispatcher."""
    calls = []
    original = functional.convolve
    monkeypatch.setattr(functional, "convolve", lambda *args, **kinds: calls.append(1) or original(*args, **kinds))
    return calls


X = integers(2, 12, 7, 8)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_plain_calls_are_direct(weight, direct_calls, mode):
    with mode():
        y = conv(X, weight)
    assert direct_calls
    assert torch.equal(y, torch.nn.functional.conv2d(X, weight.decode()))


def test_gradients_go_through_the_dispatcher(weight, direct_calls):
    x = X.clone().requires_grad_()
    conv(x, weight).sum().backward()
    assert x.grad is not None
    scale = torch.ones(10, requires_grad=True)
    conv(X, weight, scale=scale).sum().backward()
    assert scale.grad is not None
    assert not direct_calls
    with torch.no_grad():
        conv(x, weight)
    assert direct_calls


def test_packed_calls_are_direct(weight, direct_calls):
    y, packed = conv(pack(X), weight, output="both")
    assert len(direct_calls) == 1
    assert torch.equal(y, torch.nn.functional.conv2d(X.sign(), weight.decode()))
    assert torch.equal(packed.unpack(), y.sign())


@pytest.mark.parametrize("name", ["residual", "slope", "shift"])
def test_gradients_of_the_epilogue_go_through_the_dispatcher(weight, direct_calls, name):
    tensors = {"residual": torch.ones(2, 10, 5, 6), "slope": torch.ones(10), "shift": torch.ones(10)}
    tensors[name].requires_grad_()
    conv(X, weight, activation="prelu", **tensors).sum().backward()
    assert tensors[name].grad is not None
    assert not direct_calls


def test_dispatch_modes_see_the_operator(weight, direct_calls):
    class Seen(TorchDispatchMode):
        names: list[str] = []  # noqa: RUF012

        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            self.names.append(str(function))
            return function(*arguments, **(kwargs or {}))

    with Seen() as seen:
        conv(X, weight)
    assert "subbit_infer.conv2d.default" in seen.names
    with FlopCounterMode(display=False):
        conv(X, weight)
    assert not direct_calls


def test_function_modes_see_the_operator(weight, direct_calls):
    class Seen(torch.overrides.TorchFunctionMode):
        names: list[str] = []  # noqa: RUF012

        def __torch_function__(self, function, types, arguments=(), kwargs=None):
            self.names.append(str(function))
            return function(*arguments, **(kwargs or {}))

    with Seen() as seen:
        conv(X, weight)
    assert any("subbit_infer.conv2d" in name for name in seen.names)
    assert not direct_calls


def test_fake_tensors(weight, direct_calls):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert conv(mode.from_tensor(X), weight).shape == (2, 10, 5, 6)
    assert not direct_calls


def test_subclasses(weight, direct_calls):
    class Mine(torch.Tensor):
        pass

    assert type(conv(X.as_subclass(Mine), weight)) is Mine
    assert not direct_calls


def test_negated_views(weight, direct_calls):
    x = torch.complex(X, X).conj().imag
    assert torch.equal(conv(x, weight), -torch.nn.functional.conv2d(X, weight.decode()))
    assert not direct_calls


def test_profiler_sees_the_operator(weight, direct_calls):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        conv(X, weight)
    assert "subbit_infer::conv2d" in {event.key for event in profile.key_averages()}
    assert not direct_calls


def test_jit_trace(weight, direct_calls):
    traced = torch.jit.trace(lambda x: conv(x, weight), (X,), check_trace=False)
    assert "subbit_infer::conv2d" in str(traced.graph)
    assert not direct_calls
    assert torch.equal(traced(X + 1), conv(X + 1, weight))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap(weight, direct_calls):
    images = integers(3, 2, 12, 7, 8)
    y = torch.vmap(lambda x: conv(x, weight))(images)
    assert not direct_calls
    assert torch.equal(y.flatten(0, 1), torch.nn.functional.conv2d(images.flatten(0, 1), weight.decode()))


def test_forward_mode_is_not_called_directly(weight, direct_calls):
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, X)
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            conv(dual, weight)
    assert not direct_calls
