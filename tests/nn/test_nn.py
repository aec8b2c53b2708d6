"""SubbitConv2d and SubbitLinear: made from dense layers, saved, copied, moved."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, integers, random_weight

from subbit_infer import PackedWeight, conv, nn, pack


def dense_conv(**options) -> torch.nn.Conv2d:
    groups = options.get("groups", 1)
    indices, codebook = random_weight(UNIT_3X3, 12, 8 // groups, 32)
    conv = torch.nn.Conv2d(8, 12, 3, **options)
    with torch.no_grad():
        conv.weight.copy_(dense_weight(indices, codebook) * 2.0 ** torch.randint(-2, 3, (12, 1, 1, 1)))
        if conv.bias is not None:
            conv.bias.copy_(integers(12))
    return conv


def dense_linear() -> torch.nn.Linear:
    linear = torch.nn.Linear(24, 10)
    with torch.no_grad():
        linear.weight.copy_(dense_weight(*random_weight(UNIT_1X1, 10, 3, 16)).flatten(1) * 0.5)
        linear.bias.copy_(integers(10))
    return linear


@pytest.mark.parametrize("options", [
    {}, {"stride": 2, "padding": 1}, {"padding": "same", "dilation": (2, 1)}, {"groups": 4, "bias": False},
    {"stride": (1, 3), "padding": (2, 0)},
])  # fmt: skip
@pytest.mark.parametrize("activation_bits", [1, 32])
def test_conv_from_dense(options, activation_bits):
    conv = dense_conv(**options)
    layer = nn.SubbitConv2d.from_dense(conv, activation_bits=activation_bits)
    x = integers(2, 8, 9, 10)
    with torch.no_grad():
        assert torch.equal(layer(x), conv(x.sign() if activation_bits == 1 else x))


@pytest.mark.parametrize("activation_bits", [1, 32])
def test_linear_from_dense(activation_bits):
    linear = dense_linear()
    layer = nn.SubbitLinear.from_dense(linear, activation_bits=activation_bits)
    x = integers(2, 3, 24)
    with torch.no_grad():
        assert torch.equal(layer(x), linear(x.sign() if activation_bits == 1 else x))


def layers() -> list[tuple[torch.nn.Module, torch.Tensor]]:
    conv = nn.SubbitConv2d.from_dense(dense_conv(padding=1), activation_bits=1, sign_zero=1)
    plain = nn.SubbitConv2d.from_indices(*random_weight(UNIT_3X3, 12, 8, 20))
    linear = nn.SubbitLinear.from_indices(*random_weight(UNIT_1X1, 12, 3, 16), bias=torch.ones(12))
    return [(conv, integers(2, 8, 9, 10)), (plain, integers(2, 8, 9, 10)), (linear, integers(5, 24))]


@pytest.mark.parametrize("layer, x", layers(), ids=["conv", "plain", "linear"])  # noqa: PT006
class TestEveryLayer:
    def empty(self, layer):
        """A layer of the same sizes without the weight."""
        options = {"scale": layer.scale is not None, "bias": layer.bias is not None}
        modes = {"activation_bits": layer.activation_bits, "sign_zero": layer.sign_zero}
        if isinstance(layer, nn.SubbitLinear):
            return nn.SubbitLinear(layer.in_features, layer.out_features, layer.codewords, **options, **modes)
        return nn.SubbitConv2d(
            layer.in_channels, layer.out_channels, layer.unit, layer.codewords, stride=layer.stride,
            padding=layer.padding, **options, **modes,
        )  # fmt: skip

    def test_state_dict_round_trip(self, layer, x):
        other = self.empty(layer)
        other(x)  # prepared with another weight first
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x), layer(x))

    def test_running_does_not_change_the_state(self, layer, x):
        before = {k: v.clone() for k, v in layer.state_dict().items()}
        attributes = set(vars(layer))
        layer(x)
        assert before.keys() == layer.state_dict().keys()
        assert all(torch.equal(v, layer.state_dict()[k]) for k, v in before.items())
        assert attributes == set(vars(layer))

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies(self, layer, x, duplicate):
        expected = layer(x)
        other = duplicate(layer)
        assert torch.equal(other(x), expected)
        other.packed_indices.zero_()
        assert torch.equal(layer(x), expected)

    def test_saving_with_torch(self, layer, x):
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        other = self.empty(layer)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other(x), layer(x))

    def test_to(self, layer, x):
        expected = layer(x)
        half = copy.deepcopy(layer).to(torch.float16)
        assert half.packed_indices.dtype == torch.uint8
        vectors = (half.scale, half.bias)
        assert all(v.dtype == torch.float32 for v in vectors if v is not None)  # as kernels read them, without rounding
        assert torch.equal(half(x.half()), expected.half())
        assert layer.to("cpu") is layer

    def test_meta_device(self, layer, x):
        meta = copy.deepcopy(layer).to("meta")
        assert meta(x.to("meta")).shape == layer(x).shape
        filled = meta.to_empty(device="cpu")
        filled.load_state_dict(layer.state_dict())
        assert torch.equal(filled(x), layer(x))
        assigned = copy.deepcopy(layer).to("meta")
        assigned.load_state_dict(layer.state_dict(), assign=True)
        assert torch.equal(assigned(x), layer(x))

    def test_loading_bad_indices_is_refused(self, layer, x):
        if layer.codewords & (layer.codewords - 1) == 0:
            pytest.skip("every index is in a codebook whose size is a power of two")
        state = layer.state_dict() | {"packed_indices": torch.full_like(layer.packed_indices, 255)}
        with pytest.raises(RuntimeError, match=rf"packed_indices: indices must be in \[0, {layer.codewords}\)"):
            self.empty(layer).load_state_dict(state)

    def test_loading_another_dtype_is_refused(self, layer, x):
        state = {k: v.int() if v.dtype == torch.uint8 else v for k, v in layer.state_dict().items()}
        for assign in (False, True):
            with pytest.raises(RuntimeError, match=r"packed_indices: must be uint8, got torch.int32"):
                self.empty(layer).load_state_dict(state, assign=assign)

    def test_a_layer_without_memory_is_refused(self, layer, x):
        with pytest.raises(ValueError, match="must be on one device"):
            copy.deepcopy(layer).to("meta")(x)

    def test_repr_and_parameters(self, layer, x):
        assert f"tau={layer.tau}" in repr(layer)
        assert ("activation_bits=1" in repr(layer)) == (layer.activation_bits == 1)
        assert ("sign_zero=1" in repr(layer)) == (layer.sign_zero == 1)
        for usual in ("activation=", "output=", "shift", "pack_sign_zero", "=True"):
            assert usual not in repr(layer)
        assert list(layer.parameters()) == []

    def test_compile_and_export(self, layer, x):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), layer(x))
        program = torch.export.export(layer, (x,))
        assert torch.equal(program.module()(x), layer(x))


class TestEpilogue:
    """Layers that do more than their sums."""

    VECTORS = ("slope", "shift", "pack_shift")

    @pytest.fixture
    def prelu(self):
        vectors = {name: integers(12, seed=i) for i, name in enumerate(self.VECTORS)}
        return nn.SubbitConv2d.from_dense(
            dense_conv(padding=1), activation="prelu", output="both", activation_bits=1, pack_sign_zero=1, **vectors
        )

    def test_forward(self, prelu):
        x, residual = integers(2, 8, 9, 10), integers(2, 12, 9, 10, seed=7)
        options = {name: getattr(prelu, name) for name in self.VECTORS}
        options |= {"activation": "prelu", "activation_bits": 1, "output": "both", "pack_sign_zero": 1}
        y, packed = prelu(x, residual)
        expected, expected_packed = conv(x, prelu.packed_weight(), padding=1, residual=residual, **options)
        assert torch.equal(y, expected)
        assert torch.equal(packed.plus, expected_packed.plus)
        assert packed.nonzero is None
        assert torch.equal(prelu(pack(x), residual)[0], y)

    def test_linear(self):
        weight = PackedWeight.from_indices(*random_weight(UNIT_1X1, 10, 3, 16))
        first = nn.SubbitLinear.from_packed(weight, activation="hardtanh", output="packed")
        weight = PackedWeight.from_indices(*random_weight(UNIT_1X1, 6, 3, 16), bias=integers(6))
        last = nn.SubbitLinear.from_packed(weight, activation_bits=1, activation="relu", shift=integers(6, seed=1))
        x, residual = integers(5, 24), integers(5, 6)
        hidden = torch.nn.functional.pad(first(x).unpack()[:, :, 0, 0], (0, 14))
        packed = pack(hidden[:, :, None, None])
        expected = (hidden @ weight.decode()[:, :, 0, 0].T + weight.bias + residual).relu() + last.shift
        assert torch.equal(last(packed, residual), expected)

    def test_state_dict(self, prelu):
        assert list(prelu.state_dict()) == ["packed_indices", "packed_codebook", "scale", "bias", *self.VECTORS]
        empty = nn.SubbitConv2d(
            8, 12, codewords=prelu.codewords, padding=1, activation="prelu", shift=True, pack_shift=True,
            output="both", activation_bits=1, pack_sign_zero=1,
        )  # fmt: skip
        assert empty.slope.tolist() == [0.25] * 12
        empty.load_state_dict(prelu.state_dict())
        x = integers(2, 8, 9, 10)
        assert torch.equal(empty(x)[0], prelu(x)[0])

    def test_a_state_dict_of_before(self):
        layer = nn.SubbitConv2d.from_dense(dense_conv())
        state = {name: getattr(layer, name) for name in ("packed_indices", "packed_codebook", "scale", "bias")}
        assert layer.state_dict().keys() == state.keys()
        nn.SubbitConv2d(8, 12, codewords=layer.codewords).load_state_dict(state)

    def test_repr(self, prelu):
        text = "activation_bits=1, activation='prelu', output='both', pack_sign_zero=1, shift=True, pack_shift=True"
        assert repr(prelu).endswith(f"unit=(1, 3, 3), {text})")

    def test_half(self, prelu):
        half = copy.deepcopy(prelu).half()
        x = integers(2, 8, 9, 10)
        assert torch.equal(half(x.half())[0], prelu(x)[0].half())

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"activation": "gelu"}, ValueError, "activation must be one of 'none', .* got 'gelu'"),
            ({"activation": "prelu"}, ValueError, "slope must be given where activation is 'prelu'"),
            ({"slope": torch.ones(12)}, ValueError, "slope must be None unless activation is 'prelu', got 'none'"),
            ({"shift": torch.ones(11)}, ValueError, r"shift must have shape \(C_out,\) = \(12,\), got \(11,\)"),
            ({"pack_shift": torch.ones(12)}, ValueError, "pack_shift must be None where output is 'float'"),
            ({"output": "bits"}, ValueError, "output must be 'float', 'packed' or 'both', got 'bits'"),
            ({"color": 1}, TypeError, "options must be among those of the constructor, got color"),
        ],
    )
    def test_errors(self, options, error, message):
        with pytest.raises(error, match=message):
            nn.SubbitConv2d.from_dense(dense_conv(), **options)

    def test_compile_and_export(self, prelu):
        class Two(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.first = prelu
                weight = PackedWeight.from_indices(*random_weight(UNIT_3X3, 8, 12, 32))
                self.second = nn.SubbitConv2d.from_packed(weight, activation_bits=1, padding=1)

            def forward(self, x):
                y, packed = self.first(x)
                return y, self.second(packed)

        model, x = Two(), integers(2, 8, 9, 10)
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
        exported = torch.export.export(model, (x,)).module()(x)
        for ours in (compiled, exported):
            assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_from_dense_refuses_other_padding_modes():
    with pytest.raises(ValueError, match="padding_mode 'zeros', got 'reflect'"):
        nn.SubbitConv2d.from_dense(torch.nn.Conv2d(8, 8, 3, padding_mode="reflect"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((12, 16, (8, 1, 1), 16), {}), "in_channels must be a positive multiple of groups"),
        (((8, 15, (1, 3, 3), 16), {"groups": 2}), "out_channels must be a positive multiple of groups = 2, got 15"),
        (((8, 16, (1, 3, 3), 257), {}), "codewords must be an int from 1 to 256, got 257"),
        (((8, 16, (1, 3, 3), 2.5), {}), "codewords must be an int from 1 to 256, got 2.5"),
        (((8, 16, (0, 3, 3), 16), {}), r"unit must be three positive sizes \(g, kh, kw\), got \(0, 3, 3\)"),
        (((8, -1), {}), "out_channels must be a positive multiple of groups = 1, got -1"),
        (((8, 16), {"activation_bits": 8}), "activation_bits must be 1 or 32, got 8"),
        (((8, 16), {"sign_zero": 2}), "sign_zero must be 0 or 1, got 2"),
    ],
)
def test_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        nn.SubbitConv2d(*arguments[0], **arguments[1])


def test_linear_refuses_3x3_units():
    with pytest.raises(ValueError, match="units of 1x1 taps"):
        nn.SubbitLinear.from_indices(*random_weight(UNIT_3X3, 4, 4, 8))
