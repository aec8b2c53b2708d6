from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, integers, random_weight

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxruntime_extensions")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import subbit_infer  # noqa: E402
import subbit_infer.onnx as subbit_onnx  # noqa: E402
from subbit_infer import models  # noqa: E402
from subbit_infer.formats.onnx import sessions  # noqa: E402
from subbit_infer.nn import PackedMaxPool2d, SubbitConv2d, SubbitLinear  # noqa: E402

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


@pytest.fixture
def saved(tmp_path):
    """Saves a model, converts it, and gives what each way of running the result computes."""

    def convert(model):
        onnx.save(model, tmp_path / "dense.onnx")
        report = subbit_onnx.convert(tmp_path / "dense.onnx", tmp_path / "subbit.onnx")
        onnx.checker.check_model(onnx.load(tmp_path / "subbit.onnx"), full_check=True)
        return tmp_path / "dense.onnx", tmp_path / "subbit.onnx", report

    return convert


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


class _Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def test_files_that_are_no_models(tmp_path):
    whole = conv_model().SerializeToString()
    future = conv_model()
    future.ir_version = 99
    cases = {
        "empty": b"",
        "text": b"hello world, this is no model",
        "pickle": pickle.dumps(_Evil()),
        "future": future.SerializeToString(),
        **{f"cut{at}": whole[:at] for at in range(1, len(whole), len(whole) // 23)},
    }
    for name, data in cases.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        refuses(path, tmp_path, match="is not a (valid|readable) ONNX file")
    refuses(tmp_path / "missing.onnx", tmp_path, match="no such file", error=FileNotFoundError)


WEIGHTS = {
    "magnitudes": (np.linspace(0.1, 1, 8 * 16 * 9, dtype=np.float32).reshape(8, 16, 3, 3), {}, "magnitudes from"),
    "5x5": (np.ones((8, 16, 5, 5), np.float32), {}, "no kernels for 5x5 units"),
    "1-d": (np.ones((8, 16, 3), np.float32), {}, "shape"),
    "zeros": (np.zeros((8, 16, 3, 3), np.float32), {}, "weights of 0"),
}


@pytest.mark.parametrize(("weight", "attributes", "why"), WEIGHTS.values(), ids=WEIGHTS)
def test_nothing_to_convert(tmp_path, weight, attributes, why):
    shape = ["n", 16, *[9] * (weight.ndim - 2)]
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    onnx.save(make_model([node], {"w": weight}, inputs=[("x", shape)], rank=len(shape)), tmp_path / "dense.onnx")
    refuses(tmp_path / "dense.onnx", tmp_path, match=f"nothing to convert in .*dense.onnx: .*{why}.*1")


def test_what_is_skipped_and_why(tmp_path):
    random = helper.make_node("RandomNormal", [], ["w"], shape=[8, 16, 3, 3])
    conv = helper.make_node("Conv", ["x", "w"], ["y"])
    onnx.save(make_model([random, conv], {}), tmp_path / "dense.onnx")
    refuses(tmp_path / "dense.onnx", tmp_path, match="depends on a RandomNormal")
    huge = helper.make_node("Expand", ["one", "shape"], ["w"])
    constants = {"one": np.ones((1, 1, 1, 1), np.float32), "shape": np.array([2**20, 2**20, 3, 3])}
    onnx.save(make_model([huge, conv], constants), tmp_path / "dense.onnx")
    refuses(tmp_path / "dense.onnx", tmp_path, match="has sizes")
    same = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])
    model = make_model([same], {"w": conv_weight()}, inputs=[("x", ["n", 16, "h", "w"])])
    onnx.save(model, tmp_path / "dense.onnx")
    refuses(tmp_path / "dense.onnx", tmp_path, match="size the file does not say")
    biased = helper.make_node("Conv", ["x", "w", "b"], ["y"])
    inputs = [("x", ["n", 16, 9, 9]), ("b", [8])]
    onnx.save(make_model([biased], {"w": conv_weight()}, inputs=inputs), tmp_path / "dense.onnx")
    refuses(tmp_path / "dense.onnx", tmp_path, match="the bias is not constant: it depends on the input 'b'")
    gemm = helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)
    model = make_model([gemm], {"w": np.ones((16, 8), np.float32)}, inputs=[("x", [16, "n"])], rank=2)
    onnx.save(model, tmp_path / "dense.onnx")
    refuses(tmp_path / "dense.onnx", tmp_path, match="its input is transposed")
    relu = make_model([helper.make_node("Relu", ["x"], ["y"])], {})
    onnx.save(relu, tmp_path / "dense.onnx")
    refuses(tmp_path / "dense.onnx", tmp_path, match="has no Conv, Gemm, MatMul")


def test_a_folder_that_cannot_be_written(saved, tmp_path):
    dense, _, _ = saved(conv_model())
    with pytest.raises(FileNotFoundError):
        subbit_onnx.convert(dense, tmp_path / "no" / "such" / "folder.onnx")


def spoil(path, change):
    model = onnx.load(path)
    node = model.graph.node[0]
    change(model, node, {a.name: a for a in node.attribute})
    onnx.save(model, path)


def replaced(part, array):
    def change(model, node, attributes):
        tensor = next(t for t in model.graph.initializer if t.name == f"conv.{part}")
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return change


SPOILT = {
    "codewords": (lambda m, n, a: setattr(a["codewords"], "i", 300), "300"),
    "units": (lambda m, n, a: setattr(a["units"], "i", 2**40), "indices must be uint8 of shape"),
    "tau": (lambda m, n, a: setattr(a["tau"], "i", 6), r"tau must be 5 for \d+ codewords, got 6"),
    "unit": (lambda m, n, a: a["unit"].ints.append(1), "unit must be 3 integers"),
    "strides": (lambda m, n, a: a["strides"].ints.__setitem__(0, 0), "at least 1"),
    "group": (lambda m, n, a: setattr(a["group"], "i", 3), "group must divide C_out = 8, got 3"),
    "missing": (lambda m, n, a: n.attribute.remove(a["pads"]), "pads must be 4 integers, got None"),
    "operator": (lambda m, n, a: setattr(n, "op_type", "Conv9d"), "operator must be one of"),
    "scale": (replaced("scale", np.ones(7, np.float32)), "scale must be float32 of shape"),
    "codebook": (replaced("codebook", np.ones(7, np.uint8)), "codebook must be uint8 of shape"),
    "indices": (replaced("indices", np.full((8, 10), 255, np.uint8)), None),
}


@pytest.mark.parametrize(("change", "match"), SPOILT.values(), ids=SPOILT)
def test_spoilt_nodes_are_refused_when_loaded(saved, change, match):
    _, subbit, _ = saved(conv_model(conv_weight(codewords=32)))
    spoil(subbit, change)
    if match is None:  # 31 is a codeword of 32, but not one of 20
        _, subbit, _ = saved(conv_model(conv_weight(codewords=20)))
        spoil(subbit, change)
        match = "is 31"
    for load in (subbit_onnx.load, subbit_onnx.session):
        with pytest.raises(ValueError, match=match) as caught:
            load(subbit)
        assert "\n" not in str(caught.value)


def test_files_without_layers_are_refused(tmp_path):
    onnx.save(conv_model(), tmp_path / "dense.onnx")
    for load in (subbit_onnx.load, subbit_onnx.session):
        with pytest.raises(ValueError, match="must have nodes of the domain subbit_infer"):
            load(tmp_path / "dense.onnx")


def test_what_onnx_runtime_cannot_run_is_refused_in_one_line(saved):
    _, subbit, _ = saved(conv_model(node=[helper.make_node("Relu", ["x"], ["h"], "relu")]))

    def unknown_operator(model, node, attributes):
        node.domain, model.graph.node[1].input[0] = "somewhere", "h"
        model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["n", 16, 9, 9]))
        model.opset_import.append(helper.make_opsetid("somewhere", 1))

    spoil(subbit, unknown_operator)
    for load in (subbit_onnx.load, subbit_onnx.session):
        with pytest.raises(ValueError, match=r"ONNX Runtime cannot run .*subbit\.onnx") as caught:
            load(subbit)
        assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_without_onnx_the_package_imports_and_says_what_to_install(missing, tmp_path):
    code = f"import sys; sys.modules[{missing!r}] = None; import subbit_infer; import subbit_infer.onnx"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"ImportError: subbit_infer.onnx needs {missing}: pip install subbit-infer[onnx]"
