"""A call that is made again gives what it would give the first time, whatever has changed since."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import pytest
import torch
from helpers import UNIT_3X3, expected_conv, integers, random_weight

import subbit_infer
from subbit_infer import PackedWeight, conv, pack
from subbit_infer.backends import cpu
from subbit_infer.ops import functional
from subbit_infer.ops import repeat as repeat_module

PLANS = ["rows", "dense"]


def make(scale: bool = True, out_channels: int = 9) -> tuple[PackedWeight, torch.Tensor, torch.Tensor]:
    indices, codebook = random_weight(UNIT_3X3, out_channels, 6, 16)
    return (
        PackedWeight.from_indices(indices, codebook, integers(out_channels, seed=1) if scale else None),
        indices,
        codebook,
    )


def repeats(weight: PackedWeight) -> int:
    prepared = cpu.find_prepared(
        weight.packed_indices, weight.packed_codebook, weight.units, weight.codewords, weight.unit
    )
    return 0 if prepared is None else len(prepared.repeats)


@pytest.fixture(params=PLANS)
def _plan(request, monkeypatch):
    monkeypatch.setenv("SUBBIT_PLAN", request.param)


@pytest.fixture
def ran(monkeypatch):
    """How often a call was answered from memory."""
    count = [0]
    original = functional.repeat

    def counting(*arguments):
        outputs = original(*arguments)
        count[0] += outputs is not None
        return outputs

    monkeypatch.setattr(functional, "repeat", counting)
    return count


@pytest.mark.usefixtures("_plan")
class TestBothPlans:
    def test_a_second_call_is_remembered_and_right(self, ran):
        weight, indices, codebook = make()
        for seed in range(3):
            x = integers(2, 6, 7, 8, seed=seed)
            y = conv(x, weight, padding=1)
            assert torch.equal(y, expected_conv(x, indices, codebook, scale=weight.scale, padding=1).float())
        assert ran[0] == 2

    def test_a_scale_that_changes_in_place(self):
        weight, indices, codebook = make()
        x = integers(1, 6, 7, 8)
        for _ in range(3):
            weight.scale.add_(1)
            y = conv(x, weight)
            assert torch.equal(y, expected_conv(x, indices, codebook, scale=weight.scale).float())

    def test_autocast_does_not_reach_inside(self, ran):
        weight, indices, codebook = make()
        x = integers(1, 6, 7, 8)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            for _ in range(2):
                y = conv(x, weight)
                assert y.dtype == torch.float32
                assert torch.equal(y, expected_conv(x, indices, codebook, scale=weight.scale).float())
        assert ran[0] == 1

    def test_inference_tensors_change_in_place(self, ran):
        indices, codebook = random_weight(UNIT_3X3, 9, 6, 16)
        x = integers(1, 6, 7, 8)
        with torch.inference_mode():  # such tensors do not count their changes
            weight = PackedWeight.from_indices(indices.clone(), codebook, integers(9, seed=1))
            for step in range(4):
                y = conv(x, weight)
                assert torch.equal(y, expected_conv(x, indices, codebook, scale=weight.scale).float())
                if step == 2:
                    weight.scale.add_(1)
        assert ran[0] == 3
        other = PackedWeight.from_indices(indices.flip(0), codebook)
        with torch.inference_mode():
            weight.packed_indices.copy_(other.packed_indices)
            y = conv(x, weight)
        assert torch.equal(y, expected_conv(x, indices.flip(0), codebook, scale=weight.scale).float())

    def test_another_bias_of_the_same_address(self, ran):
        weight, indices, codebook = make(scale=False)
        x = integers(1, 6, 7, 8)
        for seed in range(4):  # each dies before the next is made
            bias = integers(9, seed=seed)
            assert torch.equal(conv(x, weight, bias=bias), expected_conv(x, indices, codebook, bias=bias).float())
        assert ran[0] == 0, "another tensor is another call"
        with pytest.raises(ValueError, match="bias"):
            conv(x, weight, bias=integers(8))

    def test_a_gradient_is_wanted_later(self, ran):
        weight, _, _ = make()
        x = integers(1, 6, 7, 8)
        conv(x, weight)
        assert conv(x.requires_grad_(), weight).requires_grad
        conv(x, weight).sum().backward()
        assert x.grad is not None
        with torch.no_grad():
            assert not conv(x, weight).requires_grad
        assert ran[0] == 1

    def test_the_weight_changes_in_place(self):
        weight, indices, codebook = make()
        x = integers(1, 6, 7, 8)
        conv(x, weight)
        other = PackedWeight.from_indices(indices.flip(0), codebook)
        weight.packed_indices.copy_(other.packed_indices)
        y = conv(x, weight)
        assert torch.equal(y, expected_conv(x, indices.flip(0), codebook, scale=weight.scale).float())


def test_sizes_strides_and_options_are_other_calls():
    weight, indices, codebook = make()
    x = integers(2, 6, 8, 8)
    for _ in range(2):
        for given in (x, x[:1], x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3), x[:, :, ::2, 1:]):
            for options in ({}, {"stride": 2}, {"padding": 1}, {"padding": "same"}, {"dilation": (1, 2)}):
                y = conv(given, weight, **options)
                assert torch.equal(y, expected_conv(given, indices, codebook, scale=weight.scale, **options).float())
                last = conv(given, weight, activation_bits=1, **options)
                signs = expected_conv(given, indices, codebook, scale=weight.scale, activation_bits=1, **options)
                assert torch.equal(last, signs.float())
    assert repeats(weight) <= repeat_module._MOST


def test_packed_calls_and_residuals_are_remembered(ran, monkeypatch):
    monkeypatch.setenv("SUBBIT_PLAN", "sharing")  # whatever the level: the dense plan remembers bare calls only
    weight, _, _ = make(out_channels=70)
    x = pack(integers(1, 6, 7, 8))
    residual = integers(1, 70, 7, 8, seed=4)
    calls = (
        lambda: conv(x, weight, padding=1, output="packed").unpack(),
        lambda: conv(x, weight, padding=1, residual=residual, activation="relu"),
        lambda: conv(x, weight, padding=1, residual=residual, output="both", pack_sign_zero=1)[1].unpack(),
    )
    for call in calls:
        assert torch.equal(call(), call())
    assert ran[0] == len(calls)


def test_wrong_residuals_are_refused_the_second_time_too():
    weight, _, _ = make()
    x, residual = integers(1, 6, 7, 8), integers(1, 9, 5, 6)
    conv(x, weight, residual=residual)
    with pytest.raises(TypeError, match="residual"):
        conv(x, weight, residual=residual.int())
    with pytest.raises(ValueError, match="residual"):
        conv(x, weight, residual=integers(2, 9, 5, 6)[:, :, :, :])


def test_memory_that_is_gone_is_refused_the_second_time_too():
    weight, _, _ = make()
    x = integers(1, 6, 7, 8)
    conv(x, weight)
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="storage"):
        conv(x, weight)


def test_lists_are_no_keys_but_work():
    weight, indices, codebook = make()
    x = integers(1, 6, 7, 8)
    for _ in range(2):
        y = conv(x, weight, stride=[2, 1])
        assert torch.equal(y, expected_conv(x, indices, codebook, scale=weight.scale, stride=(2, 1)).float())


def test_threads_are_part_of_the_call():
    weight, indices, codebook = make()
    x = integers(1, 6, 40, 40)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            y = conv(x, weight)
            assert torch.equal(y, expected_conv(x, indices, codebook, scale=weight.scale).float())
    finally:
        torch.set_num_threads(before)


def test_a_repeated_call_makes_few_calls_in_python():
    """Each costs tens of nanoseconds of every call; torch's own are not counted."""
    package = str(Path(subbit_infer.__file__).parent)
    weight = PackedWeight.from_indices(*random_weight(UNIT_3X3, 4, 8, 32))
    x = integers(1, 8, 4, 4)
    names = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            names.append(frame.f_code.co_name)

    conv(x, weight, padding=1)
    sys.setprofile(note)
    try:
        conv(x, weight, padding=1)
    finally:
        sys.setprofile(None)
    assert names == ["conv", "repeat", "nothing_watches", "find", "get"]
