"""What torch's tensors become on their way to the CUDA kernels, by a stand-in for these."""

from __future__ import annotations

import pytest
import torch
from helpers import UNIT_1X1, UNIT_3X3, expected_conv, integers, signs
from stand_in import DTYPES, count_for, packed

from subbit_infer import conv, pack
from subbit_infer.backends.cuda import cudnn as cuda_cudnn
from subbit_infer.backends.cuda import runtime
from subbit_infer.core.activations import pack_signs
from subbit_infer.core.epilogue import Epilogue
from subbit_infer.ops import functional, repeat


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

    def test_scaled_float16_is_convolved_in_float32(self, module, cudnn, monkeypatch, plan, activation_bits):
        monkeypatch.setenv("SUBBIT_PLAN", plan)
        weight, indices, codebook = packed(units=512, codewords=count_for(plan))
        x = integers(1, 512, 5, 6).half() * 32  # sums beyond float16, which the scale brings back
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
    assert not cuda_cudnn.has_cudnn(x, (1, 10, 3, 4)) or torch.backends.cudnn.is_available()
    monkeypatch.setattr(cuda_cudnn, "has_cudnn", lambda x, sizes: False)
    assert torch.equal(conv(x, weight), expected_conv(x, indices, codebook).float())
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    assert cuda_cudnn.has_cudnn(x, (1, 10, 3, 4))
    assert not cuda_cudnn.has_cudnn(x, (1 << 16, 1 << 15, 1, 1))


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
