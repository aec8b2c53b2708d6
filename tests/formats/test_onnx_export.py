"""Modules and programs exported as ONNX files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import UNIT_1X1, UNIT_3X3, integers, random_weight

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxruntime_extensions")
pytest.importorskip("onnxscript")

from onnx import TensorProto  # noqa: E402
from onnx_models import CPU, run  # noqa: E402

import subbit_infer  # noqa: E402
import subbit_infer.onnx as subbit_onnx  # noqa: E402
from subbit_infer import models  # noqa: E402
from subbit_infer.nn import PackedMaxPool2d, SubbitConv2d, SubbitLinear  # noqa: E402


def random_layer(layer: SubbitConv2d | SubbitLinear) -> SubbitConv2d | SubbitLinear:
    generator = torch.Generator().manual_seed(0)
    for name, buffer in layer.named_buffers():
        if buffer.dtype == torch.uint8:
            buffer.random_(0, 256, generator=generator)
        elif name == "scale":
            buffer.copy_(2.0 ** torch.randint(-2, 2, buffer.shape, generator=generator))
        else:
            buffer.copy_(torch.randint(-4, 5, buffer.shape, generator=generator) / 4)
    return layer.eval()


LAYERS = {
    "plain": (lambda: SubbitConv2d(16, 8), (16, 9, 9)),
    "geometry": (lambda: SubbitConv2d(16, 8, stride=(2, 1), padding=(0, 2), dilation=2, groups=2), (16, 9, 9)),
    "1x1": (lambda: SubbitConv2d(16, 8, UNIT_1X1, 256, scale=False, bias=False), (16, 5, 5)),
    "other unit": (lambda: SubbitConv2d(8, 8, (2, 2, 2), 64, padding="same"), (8, 5, 5)),
    "relu": (lambda: SubbitConv2d(16, 8, activation="relu", shift=True), (16, 9, 9)),
    "binary": (lambda: SubbitConv2d(16, 8, padding=1, activation_bits=1, activation="hardtanh"), (16, 9, 9)),
    "sign_zero": (
        lambda: SubbitConv2d(16, 8, padding=1, activation_bits=1, sign_zero=1, activation="prelu", shift=True),
        (16, 9, 9),
    ),
    "linear": (lambda: SubbitLinear(32, 8, activation_bits=1), (3, 32)),
}


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_an_exported_layer_equals_the_module(tmp_path, make, shape):
    layer = random_layer(make())
    path = tmp_path / "layer.onnx"
    subbit_onnx.export(layer, (torch.zeros(1, *shape),), path, input_names=["in"], output_names=["out"])
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["in", "out"]
    assert any(
        t.data_type == TensorProto.UINT8 and tuple(t.dims) == layer.packed_indices.shape
        for t in model.graph.initializer
    )
    for batch in (1, 3):
        x = integers(batch, *shape)
        expected = layer(x).numpy()
        np.testing.assert_array_equal(run(path, x.numpy())[0], expected)
        np.testing.assert_array_equal(run(path, x.numpy(), load=subbit_onnx.load)[0], expected)


class Chain(torch.nn.Module):
    """Packed activations on every way that ONNX can express: both packings, residual, pooled, unpacked, half."""

    def __init__(self) -> None:
        super().__init__()
        make = lambda **options: random_layer(  # noqa: E731
            SubbitConv2d(16, 16, padding=1, activation_bits=1, pack_shift=True, **options)
        )
        self.first = make(output="both")
        self.second = make(output="packed", pack_sign_zero=1)
        self.third = make(output="packed")
        self.pool = PackedMaxPool2d((2, 2))
        self.last = make(output="packed")
        self.linear = random_layer(SubbitLinear(16, 8, activation_bits=1, output="float"))

    def forward(self, x):
        y, signs = self.first(subbit_infer.pack(x))
        z = self.second(signs, residual=y)
        pooled = self.pool(self.third(z))
        signs = self.last(pooled)
        return y.half(), signs.unpack(), self.linear(signs.unpack().mean((2, 3)))


def test_packed_activations_become_floats(tmp_path):
    chain = Chain().eval()
    subbit_onnx.export(chain, (torch.zeros(2, 16, 8, 8),), tmp_path / "chain.onnx")
    x = integers(3, 16, 8, 8)
    for load in (lambda path: onnxruntime.InferenceSession(path, providers=CPU), subbit_onnx.load):
        for got, expected in zip(run(tmp_path / "chain.onnx", x.numpy(), load=load), chain(x), strict=True):
            np.testing.assert_array_equal(got, expected.numpy())


class Function(torch.nn.Module):
    """Indices and codebook as plain tensors, which the graph packs."""

    def __init__(self) -> None:
        super().__init__()
        indices, codebook = random_weight(UNIT_3X3, 8, 16, 20)
        self.register_buffer("indices", indices)
        self.register_buffer("codebook", codebook[:, 0])

    def forward(self, x):
        return subbit_infer.conv(x, self.indices, self.codebook, padding=1)


def test_an_exported_program_with_indices_that_it_packs_itself(tmp_path):
    x = integers(2, 16, 9, 9)
    program = torch.export.export(Function(), (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    subbit_onnx.export(program, (x,), tmp_path / "a.onnx")
    np.testing.assert_array_equal(run(tmp_path / "a.onnx", x[:1].numpy())[0], Function()(x[:1]).numpy())
    assert max(t.data_type for t in onnx.load(tmp_path / "a.onnx").graph.initializer) == TensorProto.UINT8
    subbit_onnx.export(Function().eval(), (x,), tmp_path / "b.onnx", dynamic_batch=False)
    assert [d.dim_value for d in onnx.load(tmp_path / "b.onnx").graph.input[0].type.tensor_type.shape.dim] == [
        2,
        16,
        9,
        9,
    ]


class Packs(torch.nn.Module):
    def forward(self, x):
        return subbit_infer.pack(x).plus


class Adds(torch.nn.Module):
    def forward(self, x):
        return subbit_infer.pack(x).plus + 1


class Packed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = random_layer(SubbitConv2d(16, 8, activation_bits=1))

    def forward(self, words):
        return self.conv(subbit_infer.PackedActivations(words, None, 16, trusted=True))


def test_what_cannot_be_exported(tmp_path):
    path, x = tmp_path / "out.onnx", torch.zeros(2, 16, 9, 9)
    path.write_text("before")
    conv = random_layer(SubbitConv2d(16, 8))
    cases = [
        (Packs().eval(), (x,), ValueError, "packed activations are a result of the model"),
        (Adds().eval(), (x,), ValueError, "packed activations go into aten.add"),
        (Packed().eval(), (torch.zeros(2, 9, 9, 1, dtype=torch.int64),), ValueError, "are an input of the model"),
        (torch.nn.ReLU().eval(), (x,), ValueError, "must have a sub-bit layer"),
        (SubbitConv2d(16, 8), (x,), ValueError, "evaluation mode"),
        (conv, (x[:, :3],), ValueError, "C_in = 16"),
        (conv, x, TypeError, "args must be a tuple"),
        (torch.relu, (x,), TypeError, "module must be"),
    ]
    for module, args, error, match in cases:
        with pytest.raises(error, match=match) as caught:
            subbit_onnx.export(module, args, path)
        assert "\n" not in str(caught.value)
        assert path.read_text() == "before"


@pytest.mark.parametrize(
    "make",
    [models.reactnet18, lambda num_classes: models.vgg_small(1, num_classes), models.vgg_small],
    ids=["reactnet18", "vgg_small-A1", "vgg_small-A32"],
)
def test_an_exported_folded_network(tmp_path, make):
    """Packed activations go through layers, and in a VGG-small through max-pooling too."""
    model = make(num_classes=10)
    models.make_subbit_weights(model)
    models.calibrate(model, torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    folded = subbit_infer.convert(model, x, fold=True).model
    subbit_onnx.export(folded, (x,), tmp_path / "folded.onnx")
    with torch.no_grad():
        expected = folded(x).numpy()
    for load in (lambda path: onnxruntime.InferenceSession(path, providers=CPU), subbit_onnx.load):
        (got,) = run(tmp_path / "folded.onnx", x.numpy(), load=load)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * abs(expected).max())
