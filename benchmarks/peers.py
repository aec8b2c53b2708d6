"""What people would use instead: PyTorch, ONNX Runtime and OpenVINO, for one layer or a whole network.

Every peer gets its input as it likes it best: torch's channels_last input is channels_last already. Engines get and
give float32 NCHW, and their threads are limited to torch's number.
"""

import copy
import io
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from onnx import TensorProto, helper, numpy_helper
from openvino import opset1
from torch import Tensor, nn
from torch.nn import functional as F

from layers import Problem
from results import COMPILED, COMPILED_LAST, ONE_BIT, ONE_BIT_KERNEL, OPENVINO, ORT, TORCH, TORCH_LAST
from timing import Contender

# Peers add in orders of their own, and some with Winograd's transforms, whose fractions are not exact: relative to the
# largest output. A wrong tap would show as some 1e-2.
LAYER_BOUND = 1e-4
NETWORK_BOUND = 1e-3

ONNX_OPSET = 17
ONNX_IR = 8

PROFILED_MODELS = 8

_core = openvino.Core()


def of_layer(problem: Problem) -> list[Contender]:
    """Dense float peers of a layer. They do the same work for binary activations, handed the signs."""
    return [*torch_of_layer(problem), ort_of_layer(problem), openvino_of_layer(problem)]


def torch_of_layer(problem: Problem) -> list[Contender]:
    """Eager PyTorch in both layouts."""
    last = torch.channels_last
    x, weight, stride, padding = problem.x, problem.dense, problem.layer.stride, problem.layer.padding
    x_last, weight_last = x.contiguous(memory_format=last), weight.contiguous(memory_format=last)
    expected = problem.expected_a32
    return [
        Contender(TORCH, lambda: F.conv2d(x, weight, None, stride, padding), expected, bound=LAYER_BOUND),
        Contender(
            TORCH_LAST, lambda: F.conv2d(x_last, weight_last, None, stride, padding), expected, bound=LAYER_BOUND
        ),
    ]


def ort_of_layer(problem: Problem) -> Contender:
    """ONNX Runtime: a graph of one Conv."""
    layer = problem.layer
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[layer.stride] * 2, pads=[layer.padding] * 4)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(problem.x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(problem.dense.numpy(), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", ONNX_OPSET)])
    model.ir_version = ONNX_IR
    return _ort(model.SerializeToString(), problem.x, problem.expected_a32, LAYER_BOUND)


def openvino_of_layer(problem: Problem) -> Contender:
    """OpenVINO: a model of one Convolution."""
    x = opset1.parameter(list(problem.x.shape), np.float32)
    weight = opset1.constant(problem.dense.numpy())
    y = opset1.convolution(x, weight, *_geometry(problem))
    return _openvino(openvino.Model([y], [x]), problem.x, problem.expected_a32, LAYER_BOUND)


def one_bit_of_layer(problem: Problem) -> list[Contender]:
    """OpenVINO's 1-bit convolution: whole, with its quantize and reorders, and of that its compiled kernel alone.

    It knows no scale; and since it has ways of its own at padding, outputs that see padding are not compared.
    """
    inside = _inside(problem)
    scale = problem.weight.scale
    expected = (problem.expected_a1 if scale is None else problem.expected_a1 / scale[:, None, None])[inside]
    request, bits = _one_bit(problem, profile=False)

    def run(bits: object = bits) -> openvino.InferRequest:
        request.infer()  # `bits` is held here because OpenVINO does not copy what is under a constant
        return request

    profiled = _Profiled(problem)
    return [
        Contender(ONE_BIT, run, expected, as_tensor=lambda done: _output(done)[inside]),
        Contender(
            ONE_BIT_KERNEL,
            profiled.run,
            expected,
            as_tensor=lambda done: _output(done)[inside],
            before=profiled.next,
            read_ms=profiled.read_ms,
        ),
    ]


class _Profiled:
    """1-bit convolutions that say how long the kernel took in the last run.

    OpenVINO's profile holds whole microseconds, averaged over all runs of a model. So the last run is found from the
    averages before and after it, which is the more exact the fewer runs there were: models take turns. (One that is
    made anew each time would be better still, but its memory traffic slows others down, up to twice.)
    """

    def __init__(self, problem: Problem) -> None:
        self.models = [_one_bit(problem, profile=True) for _ in range(PROFILED_MODELS)]
        self.runs = [0] * PROFILED_MODELS
        self.total_ms = [0.0] * PROFILED_MODELS
        self.turn = 0
        self.last_ms = 0.0

    def next(self) -> None:
        """Goes on to the next model."""
        self.turn = (self.turn + 1) % PROFILED_MODELS

    def run(self) -> openvino.InferRequest:
        """Runs the model whose turn it is."""
        request, _ = self.models[self.turn]
        request.infer()
        self.runs[self.turn] += 1
        average = sum(node.real_time.total_seconds() for node in _binary_nodes(request)) * 1e3
        total = average * self.runs[self.turn]
        self.last_ms, self.total_ms[self.turn] = total - self.total_ms[self.turn], total
        return request

    def read_ms(self) -> float:
        """Milliseconds of the kernel in the last run."""
        return self.last_ms


def of_network(model: nn.Module, images: Tensor, expected: Tensor, *, compiled: bool) -> list[Contender]:
    """Peers of a whole dense network.

    Args:
        model: The network, in evaluation mode.
        images: Its input.
        expected: Its logits.
        compiled: Whether torch.compile takes part; compiling takes some ten seconds a network and layout.
    """
    last = torch.channels_last
    images_last = images.contiguous(memory_format=last)
    model_last = copy.deepcopy(model).to(memory_format=last)  # type: ignore[call-overload]  # torch lacks this one
    runs: dict[str, Callable[[], Tensor]] = {TORCH: lambda: model(images), TORCH_LAST: lambda: model_last(images_last)}
    if compiled:
        # Frozen weights are laid out in advance: 33 ms instead of 43 for a ResNet-18. Not an option of torch.compile,
        # which would be too late for what traces the network.
        torch._inductor.config.freezing = True
        fast, fast_last = (torch.compile(each) for each in (model, model_last))
        runs |= {COMPILED: lambda: fast(images), COMPILED_LAST: lambda: fast_last(images_last)}
    onnx_model = _to_onnx(model, images)
    return [
        *(Contender(name, run, expected, bound=NETWORK_BOUND) for name, run in runs.items()),
        _ort(onnx_model, images, expected, NETWORK_BOUND),
        _openvino(_core.read_model(onnx_model), images, expected, NETWORK_BOUND),
    ]


def one_bit_kernel_type(problem: Problem) -> str:
    """Which kernel OpenVINO takes for its 1-bit convolution, by its own name."""
    request, _ = _one_bit(problem, profile=True)
    request.infer()
    return next(str(node.exec_type) for node in _binary_nodes(request))


def _to_onnx(model: nn.Module, images: Tensor) -> bytes:
    """The network as an ONNX file in memory; the exporter's chatter is about packages that are not needed."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    assert program is not None
    data: bytes = program.model_proto.SerializeToString()
    return data


def _ort(model: bytes, x: Tensor, expected: Tensor, bound: float) -> Contender:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return Contender(
        ORT, lambda: session.run(None, feed), expected, as_tensor=lambda out: torch.from_numpy(out[0]), bound=bound
    )


def _openvino(model: openvino.Model, x: Tensor, expected: Tensor, bound: float) -> Contender:
    request = _request(model, x)
    return Contender(OPENVINO, request.infer, expected, as_tensor=lambda _: _output(request), bound=bound)


def _request(model: openvino.Model, x: Tensor, *, profile: bool = False) -> openvino.InferRequest:
    """A compiled model with its input in place."""
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "PERF_COUNT": profile,
    }
    request = _core.compile_model(model, "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=False))
    return request


def _output(request: openvino.InferRequest) -> Tensor:
    return torch.from_numpy(request.get_output_tensor().data)


def _geometry(problem: Problem) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, padding before and behind, dilation."""
    stride, padding = problem.layer.stride, problem.layer.padding
    return [stride] * 2, [padding] * 2, [padding] * 2, [1, 1]


def _one_bit(problem: Problem, *, profile: bool) -> tuple[openvino.InferRequest, np.ndarray[Any, Any]]:
    """A 1-bit convolution that is ready to run, and the weight that has to live as long."""
    x = opset1.parameter(list(problem.x.shape), np.float32)
    zero, one = (opset1.constant(np.full((1, 1, 1, 1), value, np.float32)) for value in (0, 1))
    bits_of_x = opset1.fake_quantize(x, zero, zero, zero, one, 2)  # to 0 and 1; to -1 and 1 would give wrong sums
    bits = np.packbits((problem.signs.numpy() > 0).reshape(-1), bitorder="little")
    shape = openvino.Shape(list(problem.signs.shape))
    weight = openvino.op.Constant(openvino.Tensor(bits, shape, openvino.Type.u1))
    y = opset1.binary_convolution(bits_of_x, weight, *_geometry(problem), "xnor-popcount", 0.0)
    return _request(openvino.Model([y], [x]), problem.x, profile=profile), bits


def _inside(problem: Problem) -> tuple[Any, ...]:
    """The outputs that see no padding; all where there are none."""
    layer = problem.layer
    last = (layer.side - 1) // layer.stride  # whose window ends at or behind the input's last line
    first = min(layer.padding, last)
    inside = slice(first, max(last + 1 - layer.padding, first + 1))
    return ..., inside, inside


def _binary_nodes(request: openvino.InferRequest) -> list[Any]:
    return [node for node in request.profiling_info if node.node_type == "BinaryConvolution"]
