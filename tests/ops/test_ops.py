"""conv and linear as people call them: F.conv2d's habits, torch.compile and export, gradients, error messages."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, expected_conv, integers, random_weight, signs
from hypothesis import given, settings
from hypothesis import strategies as st

import subbit_infer
from subbit_infer import PackedWeight, conv, linear


@pytest.fixture(scope="module")
def weight():
    return random_weight(UNIT_3X3, 10, 12, 32)


@st.composite
def problems(draw):
    unit = draw(st.sampled_from([UNIT_3X3, UNIT_1X1, (1, 5, 5), (4, 1, 1), (2, 2, 3)]))
    groups = draw(st.integers(1, 3))
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    stride, dilation, padding = pair(1, 3), pair(1, 3), pair(0, 4)
    reach = [dilation[i] * (unit[1 + i] - 1) + 1 - 2 * padding[i] for i in (0, 1)]
    size = [draw(st.integers(max(1, r), max(1, r) + 20)) for r in reach]
    return {
        "unit": unit,
        "units": draw(st.integers(1, 20)),
        "out_channels": groups * draw(st.integers(1, 20)),
        "codewords": draw(st.integers(1, min(256, 2 ** (unit[0] * unit[1] * unit[2])))),
        "batch": draw(st.integers(0, 3)),
        "size": size,
        "options": {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
        "modes": {"activation_bits": draw(st.sampled_from([1, 32])), "sign_zero": draw(st.integers(0, 1))},
        "layout": draw(st.sampled_from(["contiguous", "channels_last", "transposed", "every other"])),
    }


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "every other":
        wide = torch.full((x.shape[0], x.shape[1], x.shape[2] * 2, x.shape[3] * 3), 99.0)
        wide[:, :, ::2, ::3] = x
        return wide[:, :, ::2, ::3]
    return x


@settings(max_examples=150, deadline=None)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_any_problem_equals_conv2d(problem, seed):
    indices, codebook = random_weight(
        problem["unit"], problem["out_channels"], problem["units"], problem["codewords"], seed
    )
    channels = problem["units"] * problem["unit"][0] * problem["options"]["groups"]
    x = laid_out(integers(problem["batch"], channels, *problem["size"], seed=seed), problem["layout"])
    scale, bias = integers(problem["out_channels"], seed=1), integers(problem["out_channels"], seed=2)
    y = conv(x, indices, codebook, bias, scale=scale, **problem["options"], **problem["modes"])
    expected = expected_conv(x, indices, codebook, scale=scale, bias=bias, **problem["options"], **problem["modes"])
    assert torch.equal(y, expected.float())


@pytest.mark.parametrize("plan", ["dense", "sharing"])
@pytest.mark.parametrize("unit", [UNIT_1X1, UNIT_3X3, (4, 1, 1)])
def test_outputs_that_lie_in_the_padding(monkeypatch, plan, unit):
    """F.conv2d itself crashes on these (reference.dense_conv2d)."""
    monkeypatch.setenv("SUBBIT_PLAN", plan)
    for size, stride, dilation, padding in [
        ((13, 1), (3, 3), (2, 2), (4, 4)),
        ((4, 1), (1, 2), (2, 3), (3, 3)),
        ((1, 1), (1, 1), (1, 1), (3, 2)),
        ((2, 1), (1, 1), (3, 3), (5, 4)),
    ]:
        indices, codebook = random_weight(unit, 22, 8, 16)
        x = integers(2, 16 * unit[0], *size).contiguous(memory_format=torch.channels_last)
        options = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": 2,
            "bias": integers(22, seed=1),
        }
        expected = expected_conv(x, indices, codebook, **options)
        for _ in range(100):  # it does not crash every time
            assert torch.equal(conv(x.clone(), indices, codebook, **options), expected.float())


class TestHabitsOfConv2d:
    @pytest.mark.parametrize("padding", ["same", "valid", 1, (1, 2), [2, 1]])
    @pytest.mark.parametrize("unit", [UNIT_3X3, (1, 2, 4)])
    def test_padding(self, padding, unit):
        indices, codebook = random_weight(unit, 5, 4, 16)
        x, dense = integers(2, 4, 9, 10), dense_weight(indices, codebook)
        for dilation in (1, 2):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # F.conv2d warns about even kernels and "same"
                expected = F.conv2d(x, dense, padding=padding, dilation=dilation)
            assert torch.equal(conv(x, indices, codebook, padding=padding, dilation=dilation), expected)

    @pytest.mark.parametrize("sign_zero", [0, 1])
    def test_same_padding_has_no_sign(self, sign_zero):
        indices, codebook = random_weight((1, 2, 4), 5, 4, 16)
        x = integers(2, 4, 9, 10)
        y = conv(x, indices, codebook, padding="same", activation_bits=1, sign_zero=sign_zero)
        signed = signs(x, sign_zero)
        assert torch.equal(y, F.conv2d(F.pad(signed, (1, 2, 0, 1)), dense_weight(indices, codebook)))

    def test_slices_of_channels_last(self, weight):
        x = integers(2, 16, 12, 9).contiguous(memory_format=torch.channels_last)
        for part in (x[:, :12], x[:, 2:14, 1:, :7]):
            expected = F.conv2d(part, dense_weight(*weight))
            y = conv(part, *weight)
            assert torch.equal(y, expected)
            assert y.stride() == expected.stride()

    def test_autocast_does_not_change_the_sums(self):
        indices, codebook = random_weight((1, 5, 5), 3, 2, 16)
        x = integers(1, 2, 9, 9) + 256
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(
                conv(x, indices, codebook), F.conv2d(x.double(), dense_weight(indices, codebook).double()).float()
            )

    def test_numpy_integers(self, weight):
        x = integers(1, 12, 9, 9)
        y = conv(x, *weight, stride=np.int64(2), padding=(np.int32(1), 1), groups=np.int64(1))
        assert torch.equal(y, F.conv2d(x, dense_weight(*weight), stride=2, padding=1))

    def test_unbatched(self, weight):
        x = integers(12, 7, 8)
        assert torch.equal(conv(x, *weight, padding=1), F.conv2d(x, dense_weight(*weight), padding=1))

    def test_short_codebooks(self, weight):
        indices, codebook = weight
        x = integers(1, 12, 7, 8)
        assert torch.equal(conv(x, indices, codebook[:, 0]), conv(x, indices, codebook))
        indices, codebook = random_weight(UNIT_1X1, 5, 3, 16)
        x = integers(1, 24, 7, 8)
        assert torch.equal(conv(x, indices, codebook[:, :, 0, 0]), conv(x, indices, codebook))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
    def test_index_dtypes(self, weight, dtype):
        x = integers(1, 12, 7, 8)
        assert torch.equal(conv(x, weight[0].to(dtype), weight[1]), conv(x, *weight))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("unit", [UNIT_3X3, (1, 5, 5)])
    def test_half_types_are_computed_in_float32(self, dtype, unit):
        indices, codebook = random_weight(unit, 5, 6, 16)
        x = torch.randn(2, 6, 8, 9).to(dtype)
        y = conv(x, indices, codebook, padding=1)
        assert y.dtype == dtype
        assert torch.equal(y, conv(x.float(), indices, codebook, padding=1).to(dtype))

    @pytest.mark.parametrize("unit", [UNIT_3X3, (1, 5, 5)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_memory_format(self, unit, dtype):
        indices, codebook = random_weight(unit, 5, 6, 16)
        x = integers(2, 6, 8, 9).to(dtype)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            formatted = x.contiguous(memory_format=memory_format)
            y = conv(formatted, indices, codebook, padding=1)
            assert y.is_contiguous(memory_format=memory_format)
            assert y.stride() == F.conv2d(formatted, dense_weight(indices, codebook).to(dtype), padding=1).stride()

    def test_empty_batch(self, weight):
        y = conv(torch.zeros(0, 12, 7, 8), *weight, padding=1)
        assert (y.shape, y.dtype) == ((0, 10, 7, 8), torch.float32)

    def test_expanded_and_offset_inputs(self, weight):
        x = integers(1, 1, 9, 10).expand(2, 12, 9, 10)
        assert torch.equal(conv(x, *weight), F.conv2d(x, dense_weight(*weight)))
        x = integers(3, 15, 9, 10)[1:, 2:14, 1:, 3:]
        assert torch.equal(conv(x, *weight), F.conv2d(x, dense_weight(*weight)))

    def test_negated_view(self, weight):
        x = torch.complex(integers(1, 12, 5, 5), integers(1, 12, 5, 5, seed=1)).conj().imag
        assert x.is_neg()
        assert torch.equal(conv(x, *weight), F.conv2d(x, dense_weight(*weight)))


class TestPlainTensorsArePackedOnce:
    def test_changes_in_place_are_seen(self):
        indices, codebook = random_weight(UNIT_3X3, 4, 5, 8)
        x = integers(1, 5, 6, 6)
        conv(x, indices, codebook)
        indices[2, 3] = (indices[2, 3] + 1) % 8
        assert torch.equal(conv(x, indices, codebook), F.conv2d(x, dense_weight(indices, codebook)))
        codebook[1] *= -1
        assert torch.equal(conv(x, indices, codebook), F.conv2d(x, dense_weight(indices, codebook)))
        indices[0, 0] = 8
        with pytest.raises(ValueError, match=r"indices\[0, 0\] is 8"):
            conv(x, indices, codebook)

    def test_changes_of_packed_tensors_are_seen(self):
        weight = PackedWeight.from_indices(*random_weight(UNIT_3X3, 4, 5, 8))
        x = integers(1, 5, 6, 6)
        conv(x, weight)
        weight.packed_indices.copy_(torch.zeros_like(weight.packed_indices))
        assert torch.equal(conv(x, weight), F.conv2d(x, weight.decode()))

    def test_inference_tensors(self):
        with torch.inference_mode():
            indices, codebook = random_weight(UNIT_3X3, 4, 5, 8)
            weight = PackedWeight.from_indices(indices, codebook)
            x = integers(1, 5, 6, 6)
            for _ in range(2):
                assert torch.equal(conv(x, indices, codebook), F.conv2d(x, dense_weight(indices, codebook)))
                assert torch.equal(conv(x, weight), F.conv2d(x, weight.decode()))
                indices[0, 0] = (indices[0, 0] + 1) % 8
                weight.packed_indices.zero_()

    def test_another_codebook_with_the_same_indices(self):
        indices, codebook = random_weight(UNIT_3X3, 4, 5, 8)
        x = integers(1, 5, 6, 6)
        assert torch.equal(conv(x, indices, codebook), -conv(x, indices, -codebook))

    def test_a_packed_tensor_out_of_range_is_refused(self):
        weight = PackedWeight.from_indices(*random_weight(UNIT_3X3, 4, 5, 5))
        weight.packed_indices.fill_(255)
        with pytest.raises(ValueError, match=r"indices must be in \[0, 5\)"):
            conv(integers(1, 5, 6, 6), weight)


class TestLinear:
    @pytest.mark.parametrize("shape", [(24,), (1, 24), (7, 24), (2, 3, 24), (0, 24), (2, 0, 24)])
    @pytest.mark.parametrize("activation_bits", [1, 32])
    @pytest.mark.parametrize("g", [8, 4])
    def test_equals_linear(self, shape, activation_bits, g):
        indices, codebook = random_weight((g, 1, 1), 10, 24 // g, 16)
        x, bias, scale = integers(*shape), integers(10, seed=1), integers(10, seed=2)
        y = linear(x, indices, codebook, bias, scale=scale, activation_bits=activation_bits)
        dense = dense_weight(indices, codebook).flatten(1) * scale[:, None]
        expected = F.linear(x.sign() if activation_bits == 1 else x, dense, bias)
        assert y.is_contiguous()
        assert torch.equal(y, expected)

    def test_non_contiguous(self):
        indices, codebook = random_weight(UNIT_1X1, 10, 3, 16)
        x = integers(24, 5).T
        assert torch.equal(linear(x, indices, codebook), F.linear(x, dense_weight(indices, codebook).flatten(1)))

    def test_refuses_3x3_units(self, weight):
        with pytest.raises(ValueError, match=r"units of 1x1 taps for linear, got units \(1, 3, 3\)"):
            linear(torch.zeros(2, 12), *weight)


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
            ({"x": torch.zeros(1, 12, 5, 5, dtype=torch.float64)}, TypeError, "x must be float32, float16 or bfloat16"),
            ({"x": torch.zeros(1, 12, 5, 5, dtype=torch.int32)}, TypeError, "got torch.int32"),
            (
                {"x": torch.zeros(12, 5)},
                ValueError,
                r"x must be \(N, C_in, H, W\) or \(C_in, H, W\), got shape \(12, 5\)",
            ),
            ({"x": torch.zeros(1, 11, 5, 5)}, ValueError, "x must have C_in = 12 channels .* got 11"),
            ({"x": torch.zeros(1, 12, 2, 5)}, ValueError, r"x must be at least as large as the kernel: .*\(2, 5\)"),
            ({"codebook": None}, TypeError, "codebook must be given"),
            ({"codebook": [1.0]}, TypeError, "codebook must be a tensor, got list"),
            ({"codebook": torch.full((32, 3, 3), 0.5)}, ValueError, r"codebook must hold only \+1 and -1, got 0.5"),
            ({"codebook": torch.ones(300, 3, 3)}, ValueError, "codebook .*256.* got 300"),
            ({"codebook": torch.ones(3)}, ValueError, "codebook"),
            ({"bias": torch.zeros(9)}, ValueError, r"bias must have shape \(C_out,\) = \(10,\), got \(9,\)"),
            ({"scale": torch.zeros(10, 1)}, ValueError, "scale must have shape"),
            ({"bias": [0.0]}, TypeError, "bias must be a tensor or None, got list"),
            ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
            ({"stride": (1, -2)}, ValueError, r"stride must be at least 1, got \(1, -2\)"),
            ({"stride": 1.5}, TypeError, "stride must be an int or a pair of ints, got 1.5"),
            ({"stride": (1, 2, 3)}, ValueError, r"pair of ints, got \(1, 2, 3\)"),
            ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
            ({"padding": "full"}, ValueError, "padding must be 'same', 'valid', .* got 'full'"),
            ({"padding": "same", "stride": 2}, ValueError, "padding must be numbers where stride is not 1"),
            ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
            ({"groups": 0}, ValueError, "groups must be at least 1 and divide C_out = 10, got 0"),
            ({"groups": 3}, ValueError, "groups must be at least 1 and divide C_out = 10, got 3"),
            ({"groups": 2.0}, TypeError, "groups must be an int, got 2.0"),
            ({"activation_bits": 2}, ValueError, "activation_bits must be 1 or 32, got 2"),
            ({"sign_zero": -1}, ValueError, "sign_zero must be 0 or 1, got -1"),
            ({"stride": 2**40}, ValueError, r"stride must be below 2\^31, got 1099511627776"),
            ({"padding": 2**70}, ValueError, r"padding must be below 2\^31"),
            ({"groups": 2**70}, ValueError, r"groups must be below 2\^31"),
            ({"activation_bits": 1.0}, TypeError, "activation_bits must be an int, got 1.0"),
            ({"sign_zero": True}, TypeError, "sign_zero must be an int, got True"),
            ({"bias": torch.ones(10, device="meta")}, ValueError, r"must be on one device, got \[.cpu., .meta.\]"),
            ({"padding": 2**30}, ValueError, r"at most 2\^45 elements, it would have sizes \(1, 10, 2147483651"),
        ],
    )
    def test_bad_argument(self, weight, change, error, message):
        arguments = {"x": torch.zeros(1, 12, 5, 5), "indices": weight[0], "codebook": weight[1]} | change
        with pytest.raises(error, match=message):
            conv(**arguments)

    def test_codebook_beside_a_packed_weight(self, weight):
        with pytest.raises(TypeError, match="codebook must be None where indices is a PackedWeight"):
            conv(torch.zeros(1, 12, 5, 5), PackedWeight.from_indices(*weight), weight[1])

    def test_sizes_that_overflow(self, weight):
        huge = torch.zeros(1, 1, 1, 1).expand(2**20, 12, 2**13, 2**13)
        with pytest.raises(
            ValueError, match=r"at most 2\^45 elements, it would have sizes \(1048576, 10, 8190, 8190\)"
        ):
            conv(huge, *weight)

    def test_storage_without_memory(self, weight):
        x = torch.randn(1, 12, 5, 5)
        x.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match="its storage was resized to 0"):
            conv(x, *weight)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({1: torch.zeros(10, 8, dtype=torch.int32)}, TypeError, "packed_indices must be uint8 .* got torch.int32"),
            ({2: torch.zeros(36, dtype=torch.int32)}, TypeError, "packed_codebook must be uint8, got torch.int32"),
            ({1: torch.zeros(10, 7, dtype=torch.uint8)}, ValueError, "packed indices must hold 80 bytes, got 70"),
            ({0: torch.zeros(1, 12, 5, 5, dtype=torch.float64)}, TypeError, "got torch.float64"),
            ({9: [0, 1]}, ValueError, "stride and dilation must be at least 1"),
            ({16: 2}, ValueError, "activation_bits must be 1 or 32, got 2"),
            ({13: 11}, ValueError, "x must have C_in = 11 channels"),
        ],
    )
    def test_bad_arguments_of_the_operator(self, weight, change, error, message):
        packed = PackedWeight.from_indices(*weight)
        arguments = [
            torch.zeros(1, 12, 5, 5), packed.packed_indices, packed.packed_codebook, None, None, None, None, None,
            "none", [1, 1], [0, 0], [1, 1], 1, 12, 32, [1, 3, 3], 32, 0,
        ]  # fmt: skip
        for i, value in change.items():
            arguments[i] = value
        with pytest.raises(error, match=message):
            torch.ops.subbit_infer.conv2d(*arguments)

    def test_forward_mode_is_refused(self, weight):
        x = torch.randn(1, 12, 5, 5)
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            torch.func.jvp(lambda a: conv(a, *weight), (x,), (x,))


class TestTorchLibrary:
    def arguments(self, unit=UNIT_3X3, activation_bits=32, requires_grad=False, memory_format=torch.contiguous_format):
        packed = PackedWeight.from_indices(*random_weight(unit, 10, 4, 16))
        x = torch.randn(2, 4 * unit[0], 7, 8).contiguous(memory_format=memory_format).requires_grad_(requires_grad)
        scale, bias = (torch.rand(10, requires_grad=requires_grad) for _ in range(2))
        return (
            x, packed.packed_indices, packed.packed_codebook, scale, bias, None, None, None, "none", [1, 2], [1, 1],
            [1, 1], 1, packed.units, packed.codewords, list(unit), activation_bits, 0,
        )  # fmt: skip

    @pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1, (1, 5, 5)])
    @pytest.mark.parametrize("activation_bits", [1, 32])
    @pytest.mark.parametrize("requires_grad", [False, True])
    def test_opcheck(self, unit, activation_bits, requires_grad):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            arguments = self.arguments(unit, activation_bits, requires_grad, memory_format)
            torch.library.opcheck(torch.ops.subbit_infer.conv2d.default, arguments)

    def test_opcheck_of_packing(self):
        indices, codebook = random_weight(UNIT_3X3, 10, 5, 20)
        torch.library.opcheck(torch.ops.subbit_infer.pack_indices.default, (indices, 20))
        torch.library.opcheck(torch.ops.subbit_infer.pack_codebook.default, (codebook,))
        packed = PackedWeight.from_indices(indices, codebook)
        arguments = (packed.packed_indices, packed.packed_codebook, 5, 20, [1, 3, 3])
        torch.library.opcheck(torch.ops.subbit_infer.decode.default, arguments)

    @pytest.mark.parametrize("activation_bits", [1, 32])
    def test_gradients_are_those_of_the_decoded_weight(self, activation_bits):
        arguments = self.arguments(activation_bits=activation_bits, requires_grad=True)
        x, packed, codebook, scale, bias = arguments[:5]
        weight = PackedWeight(packed, codebook, 4, 16, UNIT_3X3)
        torch.ops.subbit_infer.conv2d(*arguments).square().sum().backward()
        ours = [t.grad for t in (x, scale, bias)]
        for t in (x, scale, bias):
            t.grad = None
        signed = x.sign() if activation_bits == 1 else x
        y = F.conv2d(signed, weight.decode(), stride=(1, 2), padding=1) * scale[:, None, None] + bias[:, None, None]
        y.square().sum().backward()
        for mine, theirs in zip(ours, (x.grad, scale.grad, bias.grad), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)

    @pytest.mark.parametrize("packed", [True, False])
    def test_compile(self, weight, packed):
        arguments = (PackedWeight.from_indices(*weight),) if packed else weight
        compiled = torch.compile(lambda x: conv(x, *arguments, padding="same") + 1, fullgraph=True, backend="aot_eager")
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = integers(2, 12, 7, 8).contiguous(memory_format=memory_format)
            y = compiled(x)
            assert torch.equal(y, conv(x, *weight, padding=1) + 1)
            assert y.is_contiguous(memory_format=memory_format)

    def test_compile_with_inductor(self, weight):
        packed = PackedWeight.from_indices(*weight)
        compiled = torch.compile(lambda x: conv(x.relu(), packed, padding=1).relu(), fullgraph=True)
        x = integers(2, 12, 7, 8)
        assert torch.equal(compiled(x), conv(x.relu(), packed, padding=1).relu())

    @pytest.mark.parametrize("packed", [True, False])
    def test_export_with_dynamic_batch(self, weight, packed):
        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.indices, self.codebook = weight
                self.packed = PackedWeight.from_indices(*weight)

            def forward(self, x):
                return conv(x, self.packed) if packed else conv(x, self.indices, self.codebook)

        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(Model(), (integers(2, 12, 7, 8),), dynamic_shapes={"x": {0: batch}})
        assert "subbit_infer.conv2d" in str(program.graph)
        x = integers(5, 12, 7, 8)
        assert torch.equal(program.module()(x), conv(x, *weight))

    def test_bad_indices_in_a_compiled_function_raise(self, weight):
        compiled = torch.compile(lambda x, i, c: conv(x, i, c), fullgraph=True, backend="aot_eager")
        bad = weight[0].clone()
        bad[0, 0] = 99
        with pytest.raises(ValueError, match=r"indices\[0, 0\] is 99"):
            compiled(integers(1, 12, 7, 8), bad, weight[1])

    def test_meta_tensors(self, weight):
        packed = PackedWeight.from_indices(*weight).to("meta")
        assert conv(torch.empty(3, 12, 7, 8, device="meta"), packed).shape == (3, 10, 5, 6)


def test_version():
    assert subbit_infer.__version__ == "0.1.0"
