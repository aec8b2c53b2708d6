"""Packed activations: the format, what goes in and comes out of convolutions, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, expected_conv, integers, random_weight, signs
from hypothesis import given, settings
from hypothesis import strategies as st

from subbit_infer import PackedActivations, PackedWeight, conv, linear, pack

CHANNELS = [1, 7, 63, 64, 65, 128, 130]
NAN = float("nan")


def words_by_hand(x, *, keep):
    """The words of (N, C, H, W) as the docstring draws them, one bit after the other."""
    batch, channels, height, width = x.shape
    words = torch.zeros(batch, height, width, -(-channels // 64), dtype=torch.int64)
    for n, c, i, j in keep(x).nonzero().tolist():
        bit = 1 << c % 64
        words[n, i, j, c // 64] |= bit - 2**64 if bit >= 2**63 else bit
    return words


@pytest.mark.parametrize("channels", CHANNELS)
def test_format(channels):
    x = integers(2, channels, 2, 3)
    packed = pack(x)
    assert torch.equal(packed.plus, words_by_hand(x, keep=lambda x: x > 0))
    assert torch.equal(packed.nonzero, words_by_hand(x, keep=lambda x: x != 0))
    assert (packed.channels, packed.shape, packed.device) == (channels, x.shape, x.device)
    without_zeros = pack(x, sign_zero=1)
    assert torch.equal(without_zeros.plus, words_by_hand(x, keep=lambda x: x >= 0))
    assert without_zeros.nonzero is None
    assert packed.nbytes == 2 * without_zeros.nbytes == 2 * 8 * 12 * -(-channels // 64)


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.sampled_from(CHANNELS), st.integers(0, 4), st.integers(1, 4)),
    sign_zero=st.integers(0, 1),
    shifted=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    channels_last=st.booleans(),
)
def test_round_trip(shape, sign_zero, shifted, dtype, channels_last):
    x = integers(*shape).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    shift = integers(shape[1], seed=1) if shifted else None
    packed = pack(x, shift, sign_zero)
    v = x.float() if shift is None else x.float() + shift[:, None, None]
    unpacked = packed.unpack()
    assert unpacked.dtype == torch.float32
    assert torch.equal(unpacked, signs(v, sign_zero))
    checked = PackedActivations(packed.plus, packed.nonzero, shape[1])  # which refuses stray bits
    assert torch.equal(checked.unpack(), unpacked)


def test_special_values():
    x = torch.tensor([-2.0, -0.0, 0.0, 1e-45, float("inf"), -float("inf"), NAN]).view(1, 7, 1, 1)
    assert pack(x).unpack().flatten().tolist() == [-1, 0, 0, 1, 1, -1, 0]
    assert pack(x, sign_zero=1).unpack().flatten().tolist() == [-1, 1, 1, 1, 1, -1, -1]


def test_shift_is_added_in_float32():
    x = torch.tensor([1.0], dtype=torch.float16).view(1, 1, 1, 1)
    assert pack(x, torch.tensor([-1 - 2.0**-20])).unpack().item() == -1


def test_copies_and_devices():
    packed = pack(integers(2, 70, 3, 3))
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), packed.to("cpu")):
        assert torch.equal(other.unpack(), packed.unpack())
    assert repr(packed) == "PackedActivations(shape=(2, 70, 3, 3), device='cpu')"
    assert repr(pack(integers(2, 70, 3, 3), sign_zero=1).to("meta")) == (
        "PackedActivations(shape=(2, 70, 3, 3), without zeros, device='meta')"
    )


@st.composite
def problems(draw):
    unit = draw(st.sampled_from([UNIT_3X3, UNIT_1X1, (1, 2, 3)]))
    groups = draw(st.integers(1, 2))
    return {
        "unit": unit,
        "codewords": draw(st.sampled_from([16, 64 if unit == (1, 2, 3) else 256])),
        "units": draw(st.sampled_from([1, 3, 8, 31, 32, 33, 64, 65])),
        "out_channels": groups * draw(st.sampled_from([1, 5, 32, 33, 64, 65])),
        "batch": draw(st.integers(0, 2)),
        "options": {
            "stride": draw(st.integers(1, 2)),
            "padding": draw(st.integers(0, 2)),
            "dilation": draw(st.integers(1, 2)),
            "groups": groups,
        },
        "sign_zero": draw(st.integers(0, 1)),
        "pack_sign_zero": draw(st.integers(0, 1)),
        "has": {name: draw(st.booleans()) for name in ("scale", "residual", "pack_shift")},
        "output": draw(st.sampled_from(["float", "packed", "both"])),
    }


@settings(max_examples=100, deadline=None)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_packed_in_and_out(problem, seed):
    unit, out_channels, options, has = (problem[k] for k in ("unit", "out_channels", "options", "has"))
    indices, codebook = random_weight(unit, out_channels, problem["units"], problem["codewords"], seed)
    x = integers(problem["batch"], problem["units"] * unit[0] * options["groups"], 6, 7, seed=seed)
    vector = lambda name, seed: integers(out_channels, seed=seed) if has[name] else None  # noqa: E731
    modes = {"activation_bits": 1, "sign_zero": problem["sign_zero"]}
    v = expected_conv(x, indices, codebook, scale=vector("scale", 1), **modes, **options)
    residual = integers(*v.shape, seed=3) if has["residual"] else None
    v = (v if residual is None else v + residual).relu()
    pack_shift = vector("pack_shift", 2) if problem["output"] != "float" else None
    rest = {"scale": vector("scale", 1), "residual": residual, "activation": "relu"} | options
    if problem["output"] != "float":
        rest |= {"output": problem["output"], "pack_shift": pack_shift, "pack_sign_zero": problem["pack_sign_zero"]}
    for result in (
        conv(pack(x, sign_zero=problem["sign_zero"]), indices, codebook, **rest),
        conv(x, indices, codebook, **modes, **rest),
    ):
        parts = result if isinstance(result, tuple) else (result,)
        kinds = {"float": (torch.Tensor,), "packed": (PackedActivations,), "both": (torch.Tensor, PackedActivations)}
        assert tuple(map(type, parts)) == kinds[problem["output"]]
        for part in parts:
            if isinstance(part, torch.Tensor):
                assert part.dtype == torch.float32
                assert torch.equal(part, v.float())
                continue
            shifted = v if pack_shift is None else v + pack_shift[:, None, None]
            assert torch.equal(part.unpack().double(), signs(shifted, problem["pack_sign_zero"]).double())
            assert (part.nonzero is None) == bool(problem["pack_sign_zero"])
            PackedActivations(part.plus, part.nonzero, part.channels)  # no stray bits


@pytest.mark.parametrize("unit", [UNIT_3X3, (1, 2, 4)])
@pytest.mark.parametrize("sign_zero", [0, 1])
def test_same_padding_has_no_sign(unit, sign_zero):
    indices, codebook = random_weight(unit, 5, 70, 16)
    x = integers(2, 70, 9, 10)
    y = conv(pack(x, sign_zero=sign_zero), indices, codebook, padding="same")
    assert torch.equal(y, conv(x, indices, codebook, padding="same", activation_bits=1, sign_zero=sign_zero))


def test_half_is_packed_before_it_is_rounded():
    """The sign is that of the float32 result, as a kernel has it in hand."""
    indices, codebook = random_weight(UNIT_3X3, 4, 3, 8)
    x = integers(1, 3, 5, 5).half()
    bias, pack_shift = torch.full((4,), 2.0**-20), torch.full((4,), -(2.0**-21))
    y, packed = conv(x, indices, codebook, bias, output="both", pack_shift=pack_shift)
    assert y.dtype == torch.float16
    exact = expected_conv(x.float(), indices, codebook, bias=bias)
    assert torch.equal(y, exact.half())
    assert torch.equal(packed.unpack().double(), (exact + pack_shift.double()[:, None, None]).sign())


def test_another_default_dtype():
    weight = random_weight(UNIT_3X3, 4, 3, 8)
    x = integers(1, 3, 5, 5)
    expected = conv(x, *weight, activation_bits=1, output="packed").unpack()
    torch.set_default_dtype(torch.float64)
    try:
        unpacked = conv(pack(x), *weight, output="packed").unpack()
    finally:
        torch.set_default_dtype(torch.float32)
    assert unpacked.dtype == torch.float32
    assert torch.equal(unpacked, expected)


def test_nan_packs_as_in_pack():
    indices, codebook = random_weight(UNIT_3X3, 4, 3, 8)
    x = integers(1, 3, 5, 5)
    x[0, 0, 0, 0] = NAN
    for pack_sign_zero, value in ((0, 0), (1, -1)):
        packed = conv(x, indices, codebook, output="packed", pack_sign_zero=pack_sign_zero)
        assert (packed.unpack()[0, :, 0, 0] == value).all()


def test_layout_of_a_float_result():
    indices, codebook = random_weight(UNIT_3X3, 4, 3, 8)
    y = conv(pack(integers(2, 3, 6, 7)), indices, codebook)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_words_of_any_strides():
    x = integers(2, 70, 5, 6)
    packed = pack(x)
    turned = PackedActivations(
        packed.plus.transpose(1, 2).contiguous().transpose(1, 2), packed.nonzero.flip(0).flip(0), 70
    )
    weight = random_weight(UNIT_3X3, 4, 70, 8)
    assert torch.equal(conv(turned, *weight), conv(packed, *weight))


def test_an_unbatched_input_gives_a_packed_batch_of_one():
    weight = random_weight(UNIT_3X3, 4, 3, 8)
    x = integers(3, 6, 6)
    y, packed = conv(x, *weight, output="both")
    assert torch.equal(y, conv(x, *weight))
    assert packed.shape == (1, 4, 4, 4)
    assert torch.equal(packed.unpack()[0], y.sign())


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("output", ["float", "packed", "both"])
def test_linear(batch, output):
    indices, codebook = random_weight(UNIT_1X1, 70, 9, 16)
    x, residual = integers(batch, 72), integers(batch, 70, seed=1)
    expected = F.linear(x.sign(), dense_weight(indices, codebook).flatten(1)) + residual
    for given_x in (x, pack(x[:, :, None, None])):
        result = linear(given_x, indices, codebook, residual=residual, activation_bits=1, output=output)
        for part in result if isinstance(result, tuple) else (result,):
            if isinstance(part, torch.Tensor):
                assert torch.equal(part, expected)
            else:
                assert part.shape == (batch, 70, 1, 1)
                assert torch.equal(part.unpack()[:, :, 0, 0], expected.sign())


class TestTorchLibrary:
    @pytest.mark.parametrize("channels", [1, 64, 70])
    @pytest.mark.parametrize("sign_zero", [0, 1])
    def test_opcheck_of_packing(self, channels, sign_zero):
        x = integers(2, channels, 3, 4)
        for shift in (None, integers(channels, seed=1)):
            torch.library.opcheck(torch.ops.subbit_infer.pack.default, (x, shift, sign_zero))
        packed = pack(x, sign_zero=sign_zero)
        torch.library.opcheck(torch.ops.subbit_infer.unpack.default, (packed.plus, packed.nonzero, channels))

    def arguments(self, unit, packed_x, float_output, packed_output, pack_sign_zero):
        weight = PackedWeight.from_indices(*random_weight(unit, 70, 4, 16))
        x = integers(2, 4 * unit[0], 7, 8)
        packed = pack(x)
        words = (packed.plus, packed.nonzero) if packed_x else (x, None)
        return (
            words[0], weight.packed_indices, weight.packed_codebook, integers(70), None, None, None, integers(70),
            "hardtanh", [1, 2], [1, 1], [1, 1], 1, weight.units, weight.codewords, list(unit), 1, 0, words[1],
            integers(70) if packed_output else None, pack_sign_zero, float_output, packed_output,
        )  # fmt: skip

    @pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1, (1, 2, 3)])
    @pytest.mark.parametrize("packed_x", [False, True])
    @pytest.mark.parametrize("outputs", [(True, False, 0), (False, True, 0), (True, True, 1)])
    def test_opcheck(self, unit, packed_x, outputs):
        arguments = self.arguments(unit, packed_x, *outputs)
        torch.library.opcheck(torch.ops.subbit_infer.conv2d_packed.default, arguments)
        results = torch.ops.subbit_infer.conv2d_packed(*arguments)
        assert [t.numel() > 0 for t in results] == [outputs[0], outputs[1], outputs[1] and not outputs[2]]

    def test_no_gradients(self):
        weight = random_weight(UNIT_3X3, 4, 3, 8)
        scale = torch.ones(4, requires_grad=True)
        y = conv(pack(integers(1, 3, 6, 6)), *weight, scale=scale)
        with pytest.raises(NotImplementedError, match="from or to packed activations have no gradients"):
            y.sum().backward()
        x = integers(1, 3, 6, 6).requires_grad_()
        y, packed = conv(x, *weight, output="both")
        assert not packed.plus.requires_grad
        with pytest.raises(NotImplementedError, match="use output='float' on a float x"):
            y.sum().backward()

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compile(self, backend):
        first, last = random_weight(UNIT_3X3, 70, 12, 32), random_weight(UNIT_3X3, 5, 70, 32)
        weights = [PackedWeight.from_indices(*w) for w in (first, last)]

        def chain(x):
            y, packed = conv(x, weights[0], padding=1, output="both", pack_sign_zero=1)
            return y + 1, packed, conv(packed, weights[1], padding="same"), pack(x).unpack()

        x = integers(2, 12, 7, 8)
        ours, expected = torch.compile(chain, fullgraph=True, backend=backend)(x), chain(x)
        for i in (0, 2, 3):
            assert torch.equal(ours[i], expected[i])
        assert isinstance(ours[1], PackedActivations)
        assert torch.equal(ours[1].plus, expected[1].plus)
        compiled = torch.compile(lambda p: conv(p, weights[1]), fullgraph=True, backend=backend)
        assert torch.equal(compiled(expected[1]), conv(expected[1], weights[1]))

    def test_export(self):
        weight = PackedWeight.from_indices(*random_weight(UNIT_3X3, 5, 70, 32))

        class Model(torch.nn.Module):
            def forward(self, packed):
                return conv(packed, weight, output="packed")

        packed, other = pack(integers(2, 70, 7, 8)), pack(integers(2, 70, 7, 8, seed=1))
        program = torch.export.export(Model(), (packed,))
        result, expected = program.module()(other), Model()(other)
        assert isinstance(result, PackedActivations)
        assert torch.equal(result.plus, expected.plus)
        assert torch.equal(result.nonzero, expected.nonzero)

    def test_meta(self):
        weight = PackedWeight.from_indices(*random_weight(UNIT_3X3, 5, 70, 32)).to("meta")
        y, packed = conv(pack(integers(2, 70, 7, 8)).to("meta"), weight, output="both")
        assert y.shape == packed.shape == (2, 5, 5, 6)


class TestErrors:
    GOOD = pack(integers(1, 12, 5, 5))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"plus": [1]}, TypeError, "plus must be a tensor, got list"),
            ({"plus": torch.zeros(1, 5, 5, 1)}, TypeError, "plus must be int64, got torch.float32"),
            ({"nonzero": torch.zeros(1, 5, 5, 1)}, TypeError, "nonzero must be int64, got torch.float32"),
            (
                {"plus": torch.zeros(5, 5, 1, dtype=torch.int64)},
                ValueError,
                r"plus must be \(N, H, W, ceil\(channels / 64\)\) .* got shape \(5, 5, 1\)",
            ),
            ({"channels": 65}, ValueError, "plus must be .* with 2 words for 65 channels"),
            ({"channels": 0}, ValueError, "channels must be at least 1, got 0"),
            ({"channels": 12.0}, TypeError, "channels must be an int, got 12.0"),
            (
                {"nonzero": torch.zeros(1, 5, 6, 1, dtype=torch.int64)},
                ValueError,
                r"nonzero must have the shape and device of plus, \(1, 5, 5, 1\) on cpu, got \(1, 5, 6, 1\)",
            ),
            ({"channels": 11}, ValueError, "plus must have no bit set beyond its 11 channels, but has"),
            (
                {"nonzero": torch.full((1, 5, 5, 1), -1)},
                ValueError,
                "nonzero must have no bit set beyond its 12 channels, but has",
            ),
            (
                {"nonzero": torch.zeros(1, 5, 5, 1, dtype=torch.int64)},
                ValueError,
                "plus must be a subset of nonzero, but has a bit that nonzero lacks",
            ),
        ],
    )
    def test_words(self, change, error, message):
        arguments = {"plus": self.GOOD.plus, "nonzero": self.GOOD.nonzero, "channels": 12} | change
        with pytest.raises(error, match=message):
            PackedActivations(**arguments)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
            ({"x": torch.zeros(1, 2, 3, 4, dtype=torch.float64)}, TypeError, "got torch.float64"),
            ({"x": torch.zeros(2, 3, 4)}, ValueError, r"x must be \(N, C, H, W\) .* got shape \(2, 3, 4\)"),
            ({"shift": 1.0}, TypeError, "shift must be a tensor or None, got float"),
            ({"shift": torch.zeros(3)}, ValueError, r"shift must have shape \(C_out,\) = \(2,\), got \(3,\)"),
            ({"sign_zero": 2}, ValueError, "sign_zero must be 0 or 1, got 2"),
        ],
    )
    def test_pack(self, change, error, message):
        with pytest.raises(error, match=message):
            pack(**{"x": torch.zeros(1, 2, 3, 4)} | change)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"activation_bits": 32}, ValueError, "activation_bits must be 1 where x is a PackedActivations, got 32"),
            ({"x": pack(integers(1, 13, 5, 5))}, ValueError, "x must have C_in = 12 channels .* got 13"),
            ({"output": "words"}, ValueError, "output must be 'float', 'packed' or 'both', got 'words'"),
            ({"output": None}, TypeError, "output must be a string, got None"),
            ({"pack_shift": torch.zeros(4)}, ValueError, "pack_shift must be None where output is 'float'"),
            ({"pack_sign_zero": 1}, ValueError, "pack_sign_zero must be 0 where output is 'float'"),
            ({"pack_sign_zero": 2, "output": "both"}, ValueError, "pack_sign_zero must be 0 or 1, got 2"),
            ({"pack_shift": 1.0, "output": "both"}, TypeError, "pack_shift must be a tensor or None, got float"),
            (
                {"pack_shift": torch.zeros(5), "output": "packed"},
                ValueError,
                r"pack_shift must have shape \(C_out,\) = \(4,\), got \(5,\)",
            ),
        ],
    )
    def test_conv(self, change, error, message):
        indices, codebook = random_weight(UNIT_3X3, 4, 12, 8)
        with pytest.raises(error, match=message):
            conv(**{"x": self.GOOD, "indices": indices, "codebook": codebook} | change)

    def test_linear(self):
        weight = random_weight((4, 1, 1), 4, 3, 8)
        with pytest.raises(ValueError, match=r"x must be \(N, C_in, 1, 1\) where it is packed, got shape \(1, 12, 5"):
            linear(self.GOOD, *weight)
        with pytest.raises(ValueError, match=r"x must be \(N, C_in\) where output is 'packed', got shape \(2, 3, 12\)"):
            linear(integers(2, 3, 12), *weight, output="packed")

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({0: torch.zeros(1, 5, 5, 1, dtype=torch.int32)}, TypeError, "got torch.int32"),
            ({0: torch.zeros(1, 5, 5, 2, dtype=torch.int64)}, ValueError, "with 1 words for 12 channels"),
            ({16: 32}, ValueError, "activation_bits must be 1 where x is packed, got 32"),
            ({0: torch.zeros(1, 12, 5, 5)}, ValueError, "x_nonzero must be None where x is not packed"),
            ({20: 2}, ValueError, "pack_sign_zero must be 0 or 1, got 2"),
            ({21: False}, ValueError, "float_output or packed_output must be True, got neither"),
        ],
    )
    def test_operator(self, change, error, message):
        weight = PackedWeight.from_indices(*random_weight(UNIT_3X3, 4, 12, 8))
        arguments = [
            self.GOOD.plus, weight.packed_indices, weight.packed_codebook, None, None, None, None, None, "none",
            [1, 1], [0, 0], [1, 1], 1, 12, 8, [1, 3, 3], 1, 0, self.GOOD.nonzero, None, 0, True, False,
        ]  # fmt: skip
        for i, value in change.items():
            arguments[i] = value
        with pytest.raises(error, match=message):
            torch.ops.subbit_infer.conv2d_packed(*arguments)

    def test_words_are_no_floats_to_the_other_operator(self):
        weight = PackedWeight.from_indices(*random_weight(UNIT_3X3, 4, 12, 8))
        with pytest.raises(TypeError, match=r"x must be float32, .* of 4 dimensions, got torch.int64"):
            torch.ops.subbit_infer.conv2d(
                self.GOOD.plus, weight.packed_indices, weight.packed_codebook, None, None, None, None, None, "none",
                [1, 1], [0, 0], [1, 1], 1, 12, 8, [1, 3, 3], 1, 0,
            )  # fmt: skip
