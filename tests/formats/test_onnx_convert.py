"""ONNX files converted: they compute the same, in ONNX Runtime and by our kernels."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from helpers import UNIT_1X1, UNIT_3X3, integers, random_weight

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxruntime_extensions")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_models import CPU, check_equal, conv_model, conv_weight, make_model, refuses, run  # noqa: E402

import subbit_infer.onnx as subbit_onnx  # noqa: E402
from subbit_infer import models  # noqa: E402
from subbit_infer.formats.onnx import sessions  # noqa: E402

CONVS = {
    "plain": {},
    "bias": {"bias": True},
    "stride": {"strides": [2, 1], "pads": [1, 1, 1, 1]},
    "dilation": {"dilations": [2, 1], "pads": [2, 0, 2, 0]},
    "asymmetric": {"pads": [0, 1, 2, 3]},
    "asymmetric stride": {"pads": [1, 0, 0, 1], "strides": [2, 3]},
    "valid": {"auto_pad": "VALID"},
    "same upper": {"auto_pad": "SAME_UPPER"},
    "same lower stride": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "same upper stride": {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
}


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("options", CONVS.values(), ids=CONVS)
def test_a_converted_convolution_equals_the_dense_one(saved, options, binary):
    model = conv_model(**options)
    if binary:
        sign = helper.make_node("Sign", ["x"], ["s"])
        model.graph.node.insert(0, sign)
        model.graph.node[1].input[0] = "s"
    dense, subbit, report = saved(model)
    (layer,) = report.converted
    assert (layer.name, layer.shape, layer.unit, layer.tau) == ("conv", (8, 16, 3, 3), UNIT_3X3, 5)
    assert layer.activation_bits == (1 if binary else 32)
    assert [node.op_type for node in onnx.load(subbit).graph.node] == ["SignConv2d" if binary else "Conv2d"]
    check_equal(dense, subbit, integers(2, 16, 9, 9).numpy())


@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("codewords", [1, 2, 3, 7, 16, 31, 33, 100, 256])
def test_every_tau_and_size_of_codebook(saved, unit, groups, codewords):
    weight = conv_weight(unit, 40, 48 if unit == UNIT_1X1 else 12, codewords)
    model = make_model(
        [helper.make_node("Conv", ["x", "w"], ["y"], group=groups)],
        {"w": weight},
        inputs=[("x", ["n", weight.shape[1] * groups, 5, 5])],
    )
    dense, subbit, report = saved(model)
    assert report.converted[0].codewords <= codewords
    assert (report.converted[0].codewords == codewords) == (codewords < 100)  # all of few occur among the units
    check_equal(dense, subbit, integers(1, weight.shape[1] * groups, 5, 5).numpy())


@pytest.mark.parametrize(("unit", "codewords"), [(UNIT_3X3, 20), (UNIT_3X3, 200), (UNIT_1X1, 20)])
def test_channels_that_a_folded_batch_norm_turned_round(saved, unit, codewords):
    weight = conv_weight(unit, 40, 400, codewords)
    turned = weight * np.where(np.arange(40) % 3 == 1, -1, 1).astype(np.float32)[:, None, None, None]
    model = make_model([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": turned}, inputs=[("x", ["n", 400, 3, 3])])
    dense, subbit, report = saved(model)
    assert report.converted[0].codewords <= codewords
    check_equal(dense, subbit, integers(1, 400, 3, 3).numpy())


LINEARS = {
    "MatMul": ("MatMul", False, {}),
    "Gemm": ("Gemm", True, {}),
    "Gemm transB": ("Gemm", True, {"transB": 1}),
    "Gemm alpha beta": ("Gemm", True, {"transB": 1, "alpha": -0.5, "beta": 2.0}),
}


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("op_type", "bias", "attributes"), LINEARS.values(), ids=LINEARS)
def test_a_converted_product_equals_the_dense_one(saved, op_type, bias, attributes, binary):
    weight = conv_weight(UNIT_1X1, 8, 32, 20)[:, :, 0, 0]
    initializers = {"w": weight if attributes.get("transB") else np.ascontiguousarray(weight.T)}
    names = ["s" if binary else "x", "w"]
    if bias:
        initializers["b"] = np.arange(8, dtype=np.float32)[None]
        names.append("b")
    nodes = [helper.make_node("Sign", ["x"], ["s"])] * binary
    shape = ["n", 32] if op_type == "Gemm" else ["n", 3, 32]
    model = make_model(
        [*nodes, helper.make_node(op_type, names, ["y"], **attributes)],
        initializers,
        inputs=[("x", shape)],
        rank=len(shape),
    )
    dense, subbit, report = saved(model)
    assert report.converted[0].shape == (8, 32)
    check_equal(dense, subbit, integers(4, *shape[1:]).numpy())


def test_weights_that_are_computed_from_constants(saved):
    latent, alpha = conv_weight(seed=1), np.full((8, 1, 1, 1), 0.5, np.float32)
    indices, codebook = random_weight(UNIT_3X3, 8, 8, 12)
    nodes = [
        helper.make_node("Sign", ["latent"], ["signs"]),
        helper.make_node("Mul", ["signs", "alpha"], ["w1"]),
        helper.make_node("Conv", ["x", "w1"], ["h"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Gather", ["codebook", "indices"], ["units"]),
        helper.make_node("Reshape", ["units", "shape"], ["w2"]),
        helper.make_node("Identity", ["w2"], ["w3"]),
        helper.make_node("Conv", ["h", "w3"], ["y"], "second"),
    ]
    constants = {"latent": latent, "alpha": alpha, "indices": indices.numpy(), "codebook": codebook.numpy()}
    constants |= {"shape": np.array([8, 8, 3, 3]), "unrelated": np.zeros(1, np.float32)}
    dense, subbit, report = saved(make_model(nodes, constants))
    assert [layer.name for layer in report.converted] == ["first", "second"]
    graph = onnx.load(subbit).graph
    assert [node.op_type for node in graph.node] == ["Conv2d", "Conv2d"]
    parts = {f"{name}.{part}" for name in ("first", "second") for part in ("indices", "codebook", "scale", "bias")}
    assert {tensor.name for tensor in graph.initializer} == {"unrelated"} | parts
    check_equal(dense, subbit, integers(1, 16, 9, 9).numpy())


def test_what_others_use_stays(saved):
    """A weight, and a sign, that two nodes use; and a weight that a caller may override."""
    nodes = [
        helper.make_node("Sign", ["x"], ["s"]),
        helper.make_node("Conv", ["s", "w"], ["y"], "conv"),
        helper.make_node("ReduceSum", ["w"], ["total"]),
        helper.make_node("Abs", ["s"], ["z"]),
        helper.make_node("Conv", ["x", "v"], ["u"], "open"),
    ]
    model = make_model(nodes, {"w": conv_weight(), "v": conv_weight()}, outputs=("y", "total", "z", "u"))
    model.graph.input.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, [8, 16, 3, 3]))
    model.metadata_props.add(key="author", value="somebody")
    dense, subbit, report = saved(model)
    assert [layer.name for layer in report.skipped] == ["open"]
    assert "not constant" in report.skipped[0].why
    converted = onnx.load(subbit)
    assert [node.op_type for node in converted.graph.node] == ["Sign", "SignConv2d", "ReduceSum", "Abs", "Conv"]
    assert converted.metadata_props == model.metadata_props
    assert (converted.graph.input, converted.graph.output) == (model.graph.input, model.graph.output)
    assert converted.opset_import[0] == model.opset_import[0]
    x = integers(1, 16, 9, 9).numpy()
    feed = {"x": x, "v": conv_weight(seed=5)}
    expected, got = (onnxruntime.InferenceSession(path, providers=CPU).run(None, feed) for path in (dense, subbit))
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(subbit_onnx.load(subbit).run(["u"], {"x": x})[0], run(dense, x)[3])


def test_converting_twice_finds_nothing_and_more_layers_share_the_functions(saved, tmp_path):
    _, subbit, _ = saved(conv_model())
    with pytest.raises(ValueError, match="nothing to convert"):
        subbit_onnx.convert(subbit, tmp_path / "again.onnx")
    model = onnx.load(subbit)
    model.graph.node[0].output[0] = "h"
    model.graph.node.append(helper.make_node("Conv", ["h", "w2"], ["y"], "more"))
    model.graph.initializer.append(numpy_helper.from_array(conv_weight(channels=8), "w2"))
    _, both, _ = saved(model)
    assert [function.name for function in onnx.load(both).functions] == ["Conv2d"]
    model.functions[0].node[0].name = "changed"
    with pytest.raises(ValueError, match=r"function subbit_infer\.Conv2d must be that of this version"):
        saved(model)


@pytest.mark.parametrize(("opset", "ir_version"), [(9, 3), (11, 6), (13, 7), (21, 10)])
def test_versions(saved, opset, ir_version):
    model = conv_model(bias=True)
    model.opset_import[0].version, model.ir_version = opset, ir_version
    if ir_version < 4:
        model.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
        )
    dense, subbit, report = saved(model)
    assert any("opset was raised" in note for note in report.notes) == (opset < 12)
    assert any("IR version was raised" in note for note in report.notes) == (ir_version < 8)
    check_equal(dense, subbit, integers(1, 16, 9, 9).numpy())


def test_the_result_decodes_when_it_is_loaded(saved, tmp_path):
    """ONNX Runtime is left with a plain Conv of a dense weight."""
    _, subbit, _ = saved(conv_model(bias=True))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that such a file is for this machine alone
    onnxruntime.InferenceSession(subbit, options, providers=CPU)
    assert [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node] == ["Conv"]


def test_a_file_may_replace_itself(saved, tmp_path):
    dense, subbit, _ = saved(conv_model())
    both = tmp_path / "both.onnx"
    both.write_bytes(dense.read_bytes())
    subbit_onnx.convert(both, both)
    assert both.read_bytes() == subbit.read_bytes()


def test_external_data(saved, tmp_path):
    model = conv_model()
    onnx.save(model, tmp_path / "dense.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    subbit_onnx.convert(tmp_path / "dense.onnx", tmp_path / "subbit.onnx")
    check_equal(tmp_path / "dense.onnx", tmp_path / "subbit.onnx", integers(1, 16, 9, 9).numpy())
    (tmp_path / "weights.bin").unlink()
    refuses(tmp_path / "dense.onnx", tmp_path, match="not a valid ONNX file")
    outside = onnx.load(tmp_path / "dense.onnx", load_external_data=False)
    outside.graph.initializer[0].external_data[0].value = "../outside.bin"
    (tmp_path.parent / "outside.bin").write_bytes(bytes(10_000))
    onnx.save(outside, tmp_path / "dense.onnx")
    refuses(tmp_path / "dense.onnx", tmp_path, match="not a valid ONNX file")


def test_a_program_describes_and_checks_what_it_takes(saved):
    _, subbit, _ = saved(conv_model())
    program, session = subbit_onnx.load(subbit), onnxruntime.InferenceSession(subbit, providers=CPU)
    for ours, theirs in ((program.get_inputs(), session.get_inputs()), (program.get_outputs(), session.get_outputs())):
        assert [(v.name, v.type) for v in ours] == [(v.name, v.type) for v in theirs]
    assert list(program.get_inputs()[0].shape) == session.get_inputs()[0].shape
    x = integers(1, 16, 9, 9).numpy()
    x.flags.writeable = False
    np.testing.assert_array_equal(program.run(["y"], {"x": x})[0], session.run(None, {"x": x})[0])
    with pytest.raises(ValueError, match="input_feed must be of"):
        program.run(None, {"z": x})
    with pytest.raises(ValueError, match="output_names must be among"):
        program.run(["z"], {"x": x})
    with pytest.raises(TypeError, match="float32"):
        program.run(None, {"x": x.astype(np.float64)})


def test_a_session_lets_go_of_its_layers(saved):
    _, subbit, _ = saved(conv_model())
    options = onnxruntime.SessionOptions()
    session = subbit_onnx.session(subbit, CPU, options)
    assert subbit_onnx.session(subbit, CPU, options).get_inputs()[0].name == "x"
    gc.collect()
    (number,) = sessions._layers
    layer = weakref.ref(sessions._layers[number])
    del session
    gc.collect()
    assert layer() is None


@pytest.mark.parametrize("activation_bits", [32, 1])
def test_a_converted_resnet(tmp_path, activation_bits):
    """Its outputs are the dense ones, and its weights take what the paper says."""
    model = models.resnet18(activation_bits, num_classes=10)
    models.make_subbit_weights(model)
    models.calibrate(model, torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    dense, subbit = tmp_path / "dense.onnx", tmp_path / "subbit.onnx"
    torch.onnx.export(model, (x,), dense, dynamo=False, dynamic_axes={"x": [0]}, input_names=["x"])
    report = subbit_onnx.convert(dense, subbit)
    assert [len(report.converted), len(report.skipped)] == [16, 5]
    assert {layer.activation_bits for layer in report.converted} == {activation_bits}
    body = sum(np.prod(layer.shape) for layer in report.converted)
    tensors = onnx.load(subbit).graph.initializer
    assert sum(len(t.raw_data) for t in tensors if t.name.endswith(".indices")) == body * 5 / 72
    others = sum(4 * layer.shape[0] + 32 * 9 // 8 for layer in report.converted)  # scales and codebooks
    before = dense.stat().st_size - 4 * body
    assert subbit.stat().st_size - before - others == pytest.approx(body * 5 / 72, rel=0.01)
    with torch.no_grad():
        expected = model(x).numpy()
    for load in (lambda path: onnxruntime.InferenceSession(path, providers=CPU), subbit_onnx.load):
        np.testing.assert_allclose(
            run(subbit, x.numpy(), load=load)[0], expected, rtol=0, atol=1e-4 * abs(expected).max()
        )


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_without_onnx_the_package_imports_and_says_what_to_install(missing, tmp_path):
    code = f"import sys; sys.modules[{missing!r}] = None; import subbit_infer; import subbit_infer.onnx"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"ImportError: subbit_infer.onnx needs {missing}: pip install subbit-infer[onnx]"
