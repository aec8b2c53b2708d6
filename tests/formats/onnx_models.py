"""ONNX models to convert, and what runs them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import UNIT_3X3, dense_weight, random_weight

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxruntime_extensions")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import subbit_infer.onnx as subbit_onnx  # noqa: E402

CPU = ["CPUExecutionProvider"]


def make_model(
    nodes, initializers, *, inputs=(("x", ["n", 16, 9, 9]),), outputs=("y",), rank=4, opset=18, ir_version=9, **rest
):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version, **rest)


def conv_weight(unit=UNIT_3X3, out_channels=8, channels=16, codewords=32, seed=0):
    """A dense weight whose scales are powers of two: sums of integers times them are exact."""
    weight = dense_weight(*random_weight(unit, out_channels, channels // unit[0], codewords, seed))
    return (weight * 2.0 ** (torch.arange(out_channels) % 3 - 1)[:, None, None, None]).numpy()


def conv_model(weight=None, bias=False, node=(), **attributes):
    weight = conv_weight() if weight is None else weight
    initializers = {"w": weight}
    if bias:
        initializers["b"] = np.arange(len(weight), dtype=np.float32) - 3
    names = ["x", "w", *(["b"] if bias else [])]
    return make_model([*node, helper.make_node("Conv", names, ["y"], "conv", **attributes)], initializers)


def run(path, *arrays, load=lambda path: onnxruntime.InferenceSession(path, providers=CPU)):
    session = load(path)
    return session.run(None, dict(zip([value.name for value in session.get_inputs()], arrays, strict=True)))


def check_equal(dense, subbit, *arrays):
    """Every way to run it gives exactly what the dense model does."""
    expected = run(dense, *arrays)
    for load in (lambda path: onnxruntime.InferenceSession(path, providers=CPU), subbit_onnx.load, subbit_onnx.session):
        for got, wanted in zip(run(subbit, *arrays, load=load), expected, strict=True):
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)


def replaced(part, array):
    def change(model, node, attributes):
        tensor = next(t for t in model.graph.initializer if t.name == f"conv.{part}")
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return change


def refuses(path, folder, match, error=ValueError):
    """Fails in one line, and leaves what was there."""
    out = folder / "out.onnx"
    out.write_text("before")
    files = sorted(folder.iterdir())
    with pytest.raises(error, match=match) as caught:
        subbit_onnx.convert(path, out)
    assert "\n" not in str(caught.value)
    assert out.read_text() == "before"
    assert sorted(folder.iterdir()) == files
