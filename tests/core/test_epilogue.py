"""act(scale * sum + bias + residual) + shift: exact on integers, in torch's gradients, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, expected_conv, integers, random_weight, signs
from hypothesis import given, settings
from hypothesis import strategies as st

from subbit_infer import PackedWeight, conv, linear
from subbit_infer.core import reference
from subbit_infer.core.epilogue import ACTIVATIONS, Epilogue

UNITS = [UNIT_3X3, UNIT_1X1, (1, 2, 3)]  # the last has no compiled kernel
NAN = float("nan")


def activated(v, activation, slope):
    """The activation as torch has it."""
    if activation == "relu":
        return F.relu(v)
    if activation == "hardtanh":
        return F.hardtanh(v)
    return F.prelu(v, slope.to(v.dtype)) if activation == "prelu" else v


def expected_epilogue(sums, *, residual, activation, slope, shift):
    v = activated(sums if residual is None else sums + residual.double(), activation, slope)
    return v if shift is None else v + shift.double()[:, None, None]


@st.composite
def epilogues(draw):
    some = st.booleans()
    activation = draw(st.sampled_from(ACTIVATIONS))
    unit = draw(st.sampled_from(UNITS))
    return {
        "unit": unit,
        "stride": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 2)),
        "groups": draw(st.integers(1, 2)),
        "activation": activation,
        "out_channels": 2 * draw(st.integers(1, 20)),
        "codewords": draw(st.sampled_from([32, min(256, 2 ** math.prod(unit))])),
        "has": {name: draw(some) for name in ("scale", "bias", "residual", "shift")},
        "activation_bits": draw(st.sampled_from([1, 32])),
        "channels_last": draw(some),
        "layout": draw(st.sampled_from(["contiguous", "channels_last", "expanded", "slice"])),
        "dtype": draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
    }


def residual_of(shape, layout):
    residual = integers(*shape, seed=5)
    if layout == "channels_last":
        return residual.contiguous(memory_format=torch.channels_last)
    if layout == "expanded":
        return residual[:, :, :1, :1].expand(shape)
    if layout == "slice":
        return F.pad(residual, (1, 2, 3, 4), value=NAN)[:, :, 3:-4, 1:-2]
    return residual


@settings(max_examples=150, deadline=None)
@given(case=epilogues(), seed=st.integers(0, 1000))
def test_any_epilogue_is_exact(case, seed):
    unit, out_channels, groups, has = case["unit"], case["out_channels"], case["groups"], case["has"]
    indices, codebook = random_weight(unit, out_channels, 5, case["codewords"], seed)
    x = integers(2, 5 * unit[0] * groups, 7, 8, seed=seed).to(case["dtype"])
    x = x.contiguous(memory_format=torch.channels_last) if case["channels_last"] else x
    vector = lambda name, seed: integers(out_channels, seed=seed) if has.get(name, True) else None  # noqa: E731
    sums = expected_conv(
        x.float(), indices, codebook, activation_bits=case["activation_bits"], scale=vector("scale", 1),
        bias=vector("bias", 2), stride=case["stride"], padding=case["padding"], groups=groups,
    )  # fmt: skip
    options = {
        "residual": residual_of(sums.shape, case["layout"]) if has["residual"] else None,
        "activation": case["activation"],
        "slope": vector("slope", 3) if case["activation"] == "prelu" else None,
        "shift": vector("shift", 4),
    }
    y = conv(
        x, indices, codebook, vector("bias", 2), case["stride"], case["padding"], 1, groups, scale=vector("scale", 1),
        activation_bits=case["activation_bits"], **options,
    )  # fmt: skip
    assert torch.equal(y, expected_epilogue(sums, **options).to(case["dtype"]))
    assert y.is_contiguous(memory_format=torch.channels_last) >= case["channels_last"]


def test_order_of_rounding(monkeypatch):
    """Every operation is rounded by itself, in the order written, on kernels and oracle alike."""
    monkeypatch.setenv("SUBBIT_PLAN", "sharing")  # the dense plan rounds as torch does
    generator = torch.Generator().manual_seed(0)
    x = integers(2, 12, 9, 10)
    indices, codebook = random_weight(UNIT_3X3, 20, 12, 32)
    scale, bias, slope, shift = (torch.randn(20, generator=generator) for _ in range(4))
    residual = torch.randn(2, 20, 7, 8, generator=generator)
    options = {"scale": scale, "residual": residual, "activation": "prelu", "slope": slope, "shift": shift}
    y = conv(x, indices, codebook, bias, **options)
    of_channels = lambda vector: vector.view(-1, 1, 1).expand(20, 7, 8)  # noqa: E731
    v = F.conv2d(x, dense_weight(indices, codebook)) * of_channels(scale)
    v = v + of_channels(bias)
    v = v + residual
    v = torch.where(v > 0, v, v * of_channels(slope))
    assert torch.equal(y, v + of_channels(shift))
    assert torch.equal(y, reference.conv2d(x, indices, codebook, bias, **options))
    assert torch.equal(y, reference.conv2d_shared(x, indices, codebook, bias, **options))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_goes_through(activation):
    indices, codebook = random_weight(UNIT_3X3, 4, 3, 8)
    x = integers(1, 3, 6, 6)
    x[0, 0, 5, 5] = NAN
    residual = torch.zeros(1, 4, 4, 4)
    residual[0, 1, 0, 0] = NAN
    slope = torch.ones(4) if activation == "prelu" else None
    y = conv(x, indices, codebook, residual=residual, activation=activation, slope=slope)
    nan = y.isnan()
    assert nan[:, :, 3, 3].all()
    assert nan[0, 1, 0, 0]
    assert nan.sum() == 5


def test_unbatched():
    indices, codebook = random_weight(UNIT_3X3, 4, 3, 8)
    x, residual = integers(3, 6, 6), integers(4, 4, 4)
    y = conv(x, indices, codebook, residual=residual, activation="relu")
    assert torch.equal(y, (conv(x, indices, codebook) + residual).relu())


def test_negated_residual():
    indices, codebook = random_weight(UNIT_3X3, 4, 3, 8)
    x, residual = integers(1, 3, 6, 6), torch.complex(integers(1, 4, 4, 4), integers(1, 4, 4, 4, seed=1)).conj().imag
    assert residual.is_neg()
    assert torch.equal(conv(x, indices, codebook, residual=residual), conv(x, indices, codebook) + residual)


@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 3, 24), (0, 24)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear(shape, activation):
    indices, codebook = random_weight(UNIT_1X1, 10, 3, 16)
    x, residual, shift = integers(*shape), integers(*shape[:-1], 10, seed=1), integers(10, seed=2)
    slope = integers(10, seed=3) if activation == "prelu" else None
    y = linear(x, indices, codebook, residual=residual, activation=activation, slope=slope, shift=shift)
    v = F.linear(x, dense_weight(indices, codebook).flatten(1)) + residual
    expected = torch.where(v > 0, v, v * slope) if activation == "prelu" else activated(v, activation, None)
    assert torch.equal(y, expected + shift)


def operator_arguments(unit, activation, activation_bits=32, requires_grad=False, dtype=torch.float32):
    """Those of the operator, every tensor of an epilogue given."""
    generator = torch.Generator().manual_seed(3)
    packed = PackedWeight.from_indices(*random_weight(unit, 10, 4, 16))
    sizes = F.conv2d(torch.zeros(2, 4 * unit[0], 7, 8), packed.decode(), stride=(1, 2), padding=1).shape
    x = torch.randn(2, 4 * unit[0], 7, 8, generator=generator).to(dtype)
    scale, bias, slope, shift = (torch.randn(10, generator=generator) for _ in range(4))
    residual = torch.randn(sizes, generator=generator)
    for t in (x, scale, bias, residual, slope, shift):
        t.requires_grad_(requires_grad)
    return [
        x, packed.packed_indices, packed.packed_codebook, scale, bias, residual,
        slope if activation == "prelu" else None, shift, activation, [1, 2], [1, 1], [1, 1], 1, packed.units,
        packed.codewords, list(unit), activation_bits, 0,
    ]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(unit, activation, requires_grad):
    arguments = operator_arguments(unit, activation, requires_grad=requires_grad)
    torch.library.opcheck(torch.ops.subbit_infer.conv2d.default, arguments)


@pytest.mark.parametrize("activation_bits", [1, 32])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_are_torchs(activation, activation_bits, dtype):
    arguments = operator_arguments(UNIT_3X3, activation, activation_bits, requires_grad=True, dtype=dtype)
    x, packed, codebook, scale, bias, residual, slope, shift = arguments[:8]
    leaves = [t for t in (x, scale, bias, residual, slope, shift) if t is not None]
    y = torch.ops.subbit_infer.conv2d(*arguments)
    assert y.dtype == dtype
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours = torch.autograd.grad(y, leaves, grad)
    weight = PackedWeight(packed, codebook, 4, 16, UNIT_3X3)
    signed = (signs(x, 0) if activation_bits == 1 else x).float()
    sums = F.conv2d(signed, weight.decode(), stride=(1, 2), padding=1)
    v = sums * scale[:, None, None] + bias[:, None, None] + residual
    expected = (activated(v, activation, slope) + shift[:, None, None]).to(dtype)
    theirs = torch.autograd.grad(expected, leaves, grad)
    assert [t.dtype for t in ours] == [t.dtype for t in leaves]
    for mine, true in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-3 if dtype == torch.float16 else 1e-5, atol=1e-3)


@pytest.mark.parametrize("needed", ["x", "scale", "bias", "residual", "slope", "shift"])
def test_one_gradient_at_a_time(needed):
    arguments = operator_arguments(UNIT_3X3, "prelu", requires_grad=True)
    names = ["x", "", "", "scale", "bias", "residual", "slope", "shift"]
    tensors = [t for t, name in zip(arguments, names, strict=False) if name]
    together = torch.autograd.grad(torch.ops.subbit_infer.conv2d(*arguments).square().sum(), tensors)
    for t in tensors:
        t.requires_grad_(False)
    only = arguments[names.index(needed)].requires_grad_()
    (alone,) = torch.autograd.grad(torch.ops.subbit_infer.conv2d(*arguments).square().sum(), only)
    assert torch.equal(alone, together[[n for n in names if n].index(needed)])


def test_gradients_of_nan_and_of_the_corners():
    """At the corners of an activation and at NaN the gradients are torch's too."""
    v = torch.tensor([NAN, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0]).view(1, 1, 1, 8).requires_grad_()
    grad = torch.arange(1.0, 9).view(1, 1, 1, 8)
    for activation in ACTIVATIONS[1:]:
        slope = torch.tensor([0.5], requires_grad=True) if activation == "prelu" else None
        leaves = [v] if slope is None else [v, slope]
        theirs = torch.autograd.grad(activated(v, activation, slope), leaves, grad)
        ours = Epilogue(activation=activation, slope=slope).backward(v.detach(), grad)
        for mine, true in zip(ours, theirs, strict=False):
            assert torch.equal(mine.nan_to_num(7), true.nan_to_num(7)), activation


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compile_and_export(activation):
    weight = PackedWeight.from_indices(*random_weight(UNIT_3X3, 10, 12, 32))
    slope = integers(10) if activation == "prelu" else None
    options = {"activation": activation, "slope": slope, "shift": integers(10, seed=2)}

    class Model(torch.nn.Module):
        def forward(self, x, residual):
            return conv(x.relu(), weight, padding=1, residual=residual, **options) + 1

    model, x, residual = Model(), integers(2, 12, 7, 8), integers(2, 10, 7, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, residual), model(x, residual))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (x, residual), dynamic_shapes={"x": {0: batch}, "residual": {0: batch}})
    x, residual = integers(3, 12, 7, 8), integers(3, 10, 7, 8)
    assert torch.equal(program.module()(x, residual), model(x, residual))


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"residual": [1.0]}, TypeError, "residual must be a tensor or None, got list"),
            (
                {"residual": torch.ones(1, 4, 4, 4, dtype=torch.int32)},
                TypeError,
                "residual must be floating point, got torch.int32",
            ),
            (
                {"residual": torch.ones(1, 4, 4, 1)},
                ValueError,
                r"residual must have the output's shape \(1, 4, 4, 4\), got \(1, 4, 4, 1\)",
            ),
            ({"residual": torch.ones(1, 4, 4, 4, device="meta")}, ValueError, "must be on one device"),
            ({"activation": None}, TypeError, "activation must be a string, got None"),
            (
                {"activation": "gelu"},
                ValueError,
                "activation must be one of 'none', 'relu', 'hardtanh', 'prelu', got 'gelu'",
            ),
            ({"activation": "prelu"}, ValueError, "slope must be given where activation is 'prelu'"),
            (
                {"activation": "relu", "slope": torch.ones(4)},
                ValueError,
                "slope must be None unless activation is 'prelu', got 'relu'",
            ),
            ({"slope": torch.ones(4)}, ValueError, "slope must be None unless activation is 'prelu', got 'none'"),
            ({"activation": "prelu", "slope": 0.25}, TypeError, "slope must be a tensor or None, got float"),
            (
                {"activation": "prelu", "slope": torch.ones(1)},
                ValueError,
                r"slope must have shape \(C_out,\) = \(4,\), got \(1,\)",
            ),
            ({"shift": torch.ones(5)}, ValueError, r"shift must have shape \(C_out,\) = \(4,\), got \(5,\)"),
            ({"shift": torch.ones(4, dtype=torch.int64)}, TypeError, "shift must be floating point, got torch.int64"),
            ({"shift": 1.0}, TypeError, "shift must be a tensor or None, got float"),
        ],
    )
    def test_bad_argument(self, change, error, message):
        with pytest.raises(error, match=message):
            conv(integers(1, 3, 6, 6), *random_weight(UNIT_3X3, 4, 3, 8), **change)

    def test_residual_without_memory(self):
        residual = torch.ones(1, 4, 4, 4)
        residual.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match="residual must have its memory: its storage was resized to 0"):
            conv(integers(1, 3, 6, 6), *random_weight(UNIT_3X3, 4, 3, 8), residual=residual)

    def test_residual_of_linear(self):
        with pytest.raises(ValueError, match=r"residual must have the output's shape \(2, 4\), got \(4, 2\)"):
            linear(integers(2, 24), *random_weight(UNIT_1X1, 4, 3, 8), residual=torch.ones(4, 2))

    def test_the_operator_checks_too(self):
        arguments = operator_arguments(UNIT_3X3, "relu")
        arguments[5] = torch.ones(1)
        with pytest.raises(ValueError, match="residual must have the output's shape"):
            torch.ops.subbit_infer.conv2d(*arguments)
