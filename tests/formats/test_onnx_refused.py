"""ONNX files that cannot be converted or read, and what is said then."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxruntime_extensions")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper  # noqa: E402
from onnx_models import conv_model, conv_weight, make_model, refuses, replaced  # noqa: E402

import subbit_infer.onnx as subbit_onnx  # noqa: E402


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
