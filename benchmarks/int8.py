"""ResNet-18's 3x3 layers against int8, which is what people run on CPUs: ``python benchmarks/int8.py [--json]``.

ONNX Runtime's QLinearConv with uint8 activations and int8 weights of one scale per output channel, from float32 NCHW to
float32 NCHW like everybody else (*int8*), and on tensors that are uint8 already (*int8 alone*). One thread.
"""

import json
import platform
import sys

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

import ours
import peers
from layers import RESNET18, Problem
from machine import environment
from results import A1, A32, ORT
from timing import Contender, Pace, check, take_turns

INT8 = "int8"
INT8_ALONE = "int8 alone"
TAU = 5
ZERO = 128  # of uint8: Problem's inputs are integers in [-8, 8], which a scale of 1 holds exactly
STEPS = 127  # of an output on either side of 0
BOUND = 0.6 / STEPS  # an output is rounded to its nearest step
PACE = Pace(rounds=30, least=10, seconds=1.5)


def of_layer(problem: Problem, *, is_alone: bool) -> Contender:
    """A layer by ONNX Runtime in int8."""
    layer, y_scale = problem.layer, float(problem.expected_a32.abs().max()) / STEPS
    scale = problem.weight.scale
    assert scale is not None
    constants = {
        "x_scale": np.float32(1),
        "y_scale": np.float32(y_scale),
        "zero": np.uint8(ZERO),
        "w": problem.signs.to(torch.int8).numpy(),
        "w_scale": scale.numpy(),
        "w_zero": np.zeros(layer.c_out, np.int8),
    }
    operands = ["xq", "x_scale", "zero", "w", "w_scale", "w_zero", "y_scale", "zero"]
    conv = helper.make_node("QLinearConv", operands, ["yq"], strides=[layer.stride] * 2, pads=[layer.padding] * 4)
    around = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["xq"]),
        conv,
        helper.make_node("DequantizeLinear", ["yq", "y_scale", "zero"], ["y"]),
    ]
    element = TensorProto.UINT8 if is_alone else TensorProto.FLOAT
    names = ("xq", "yq") if is_alone else ("x", "y")
    graph = helper.make_graph(
        [conv] if is_alone else around,
        "layer",
        [helper.make_tensor_value_info(names[0], element, list(problem.x.shape))],
        [helper.make_tensor_value_info(names[1], element, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", peers.ONNX_OPSET)])
    model.ir_version = peers.ONNX_IR
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = (problem.x + ZERO).to(torch.uint8).numpy() if is_alone else problem.x.numpy()

    def as_floats(outputs: list[np.ndarray]) -> Tensor:
        y = torch.from_numpy(outputs[0])
        return (y.float() - ZERO) * y_scale if is_alone else y

    return Contender(
        INT8_ALONE if is_alone else INT8,
        lambda: session.run(None, {names[0]: x}),
        problem.expected_a32,
        as_tensor=as_floats,
        bound=BOUND,
    )


def main() -> None:
    """Measures every layer, and prints milliseconds and their sum weighted by how often a layer occurs."""
    torch.set_num_threads(1)
    names = (A32, A1, ORT, INT8, INT8_ALONE)
    cpu = environment(1, "native")["cpu"]
    rows, totals = [], dict.fromkeys(names, 0.0)
    with torch.inference_mode():
        for layer, count in RESNET18.items():
            problem = Problem(layer, TAU)
            contenders = [ours.a32(problem), ours.a1(problem), peers.ort_of_layer(problem)]
            contenders += [of_layer(problem, is_alone=False), of_layer(problem, is_alone=True)]
            for contender in contenders:
                check(contender)
            samples = take_turns(contenders, PACE)
            rows.append((layer.name, count, {name: samples[name].median for name in names}))
            for name in names:
                totals[name] += count * samples[name].median
            print(f"measured {layer.name}", file=sys.stderr)
    if "--json" in sys.argv[1:]:
        print(json.dumps({"cpu": cpu, "layers": rows, "totals": totals}))
        return
    print(f"{cpu}, ONNX Runtime {onnxruntime.__version__}, Python {platform.python_version()}; ms")
    print(f"{'layer':<16}{'times':>6}" + "".join(f"{name:>16}" for name in names))
    for label, count, medians in rows:
        print(f"{label:<16}{count:>6}" + "".join(f"{medians[name]:>16.3f}" for name in names))
    print(f"{'ResNet-18':<22}" + "".join(f"{totals[name]:>16.2f}" for name in names))


if __name__ == "__main__":
    main()
