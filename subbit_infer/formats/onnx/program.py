"""ONNX files run by our kernels, and by ONNX Runtime between them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from subbit_infer.formats.onnx.functions import DOMAIN
from subbit_infer.formats.onnx.graphs import Graph, names_used
from subbit_infer.formats.onnx.layers import layer_nodes, layer_of
from subbit_infer.formats.onnx.protos import first_line, read

Array = NDArray[Any]


class Value(NamedTuple):
    """An input or output, as ``onnxruntime.NodeArg`` describes it.

    Attributes:
        name: its name.
        shape: its sizes: a number, a name, or None.
        type: such as ``"tensor(float)"``.
    """

    name: str
    shape: tuple[int | str | None, ...]
    type: str


class Program:
    """A model whose sub-bit layers run our kernels; made by :func:`load`, used as ``onnxruntime.InferenceSession`` is.

    The graph is cut at its layers. What lies between runs in ONNX Runtime, in stages: first every node that depends
    on no layer, then the layers whose inputs are now known, then every node that depends on no other layer, and so on.
    """

    def __init__(self, inputs: list[Value], outputs: list[Value], stages: list[_Stage]) -> None:
        self._inputs, self._outputs, self._stages = inputs, outputs, stages

    def get_inputs(self) -> list[Value]:
        """The inputs."""
        return list(self._inputs)

    def get_outputs(self) -> list[Value]:
        """The outputs."""
        return list(self._outputs)

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Array]) -> list[Array]:
        """Computes outputs.

        Args:
            output_names: which of them; None for all.
            input_feed: the value of every input.

        Raises:
            TypeError, ValueError: an input is missing, too many, or of another dtype or shape than layers take.
        """
        known = [value.name for value in self._outputs]
        wanted = known if output_names is None else list(output_names)
        if unknown := [name for name in wanted if name not in known]:
            raise ValueError(f"output_names must be among {known}, got {unknown}")
        if {value.name for value in self._inputs} != set(input_feed):
            raise ValueError(
                f"input_feed must be of {[value.name for value in self._inputs]}, got {sorted(input_feed)}"
            )
        values = {name: np.asarray(array) for name, array in input_feed.items()}
        kept = set(wanted)
        for stage in self._stages:
            stage.run(values)
            for name in stage.last_uses - kept:
                values.pop(name, None)
        return [values[name] for name in wanted]


@dataclass
class _Stage:
    """A part of the graph in ONNX Runtime, and layers of ours after it."""

    session: Any  # an onnxruntime.InferenceSession, or None where no node is between layers
    inputs: list[str]
    outputs: list[str]
    layers: list[tuple[str, torch.nn.Module, str]]  # names of x and y around the layer
    last_uses: set[str]  # values that no later stage needs

    def run(self, values: dict[str, Array]) -> None:
        """Adds what it computes to the values by name."""
        if self.session is not None:
            results = self.session.run(self.outputs, {name: values[name] for name in self.inputs})
            values.update(zip(self.outputs, results, strict=True))
        for x, layer, y in self.layers:
            values[y] = run_layer(layer, values[x])


def run_layer(layer: torch.nn.Module, x: Array) -> Array:
    """Calls a layer on an array, without copying it."""
    with torch.no_grad():
        y: Array = layer(torch.from_numpy(np.require(x, requirements="W"))).numpy()
    return y


def load(
    path: str | os.PathLike[str],
    providers: Sequence[str] | None = None,
    sess_options: onnxruntime.SessionOptions | None = None,
) -> Program:
    """Reads a file that :func:`subbit_infer.onnx.convert` or ``export`` wrote, to be run by our kernels.

    Args:
        path: the file.
        providers: of ONNX Runtime, for everything but our layers; None for the CPU's.
        sess_options: the same. Our layers take as many threads as ``torch.get_num_threads()``; by default, so does
            ONNX Runtime, and its threads do not spin while they wait.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a valid ONNX file, has no sub-bit layer, or a broken one.
    """
    graph = Graph(read(path))
    layer_nodes(graph)  # raises if there are none
    graph.fix_defaults()
    options = _options() if sess_options is None else sess_options
    given = ["CPUExecutionProvider"] if providers is None else list(providers)
    parts = _cut(graph)
    needs = [_needed(between, layers) for between, layers in parts]
    results = {value.name for value in graph.proto.output}
    stages = []
    for number, (between, layers) in enumerate(parts):
        later = results.union(*needs[number + 1 :])
        made = {name for node in between for name in node.output if name}
        inputs = sorted(name for name in _needed(between, []) if name not in graph.fixed)
        outputs = sorted(made & (later | {node.input[0] for node in layers}))
        session = None
        if outputs:
            part = _part(graph, between, inputs, outputs)
            session = runtime_session(part, options, given, path)
        stages.append(
            _Stage(
                session,
                inputs,
                outputs,
                [(node.input[0], layer_of(graph, node), node.output[0]) for node in layers],
                needs[number].union(made) - later,
            )
        )
    return Program(
        [_described(value) for value in graph.proto.input],
        [_described(value) for value in graph.proto.output],
        stages,
    )


def runtime_session(
    model: ModelProto, options: onnxruntime.SessionOptions, providers: Sequence[str], path: str | os.PathLike[str]
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session for a model made from a file.

    Raises:
        ValueError: ONNX Runtime rejects it.
    """
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    except Exception as error:  # ONNX Runtime's own exceptions derive from nothing narrower
        raise ValueError(f"ONNX Runtime cannot run {path}: {first_line(error)}") from error


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # The threads of one stage must not keep cores from the layers and the next stage.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _cut(graph: Graph) -> list[tuple[list[NodeProto], list[NodeProto]]]:
    """The nodes of each stage: those of ONNX Runtime and our layers."""
    stage_of: dict[str, int] = {}  # the first stage that has a value when it begins to need it
    parts: list[tuple[list[NodeProto], list[NodeProto]]] = []
    for node in graph.proto.node:
        is_layer = node.domain == DOMAIN
        stage = max((stage_of.get(name, 0) for name in names_used([node])), default=0)
        while len(parts) <= stage:
            parts.append(([], []))
        parts[stage][is_layer].append(node)
        for name in node.output:
            stage_of[name] = stage + is_layer
    return parts


def _needed(between: list[NodeProto], layers: list[NodeProto]) -> set[str]:
    """The values that a stage takes from elsewhere."""
    made = {name for node in between for name in node.output}
    return {name for name in names_used(between) if name} - made | {node.input[0] for node in layers} - made


def _part(graph: Graph, nodes: list[NodeProto], inputs: list[str], outputs: list[str]) -> ModelProto:
    """A model of some of the nodes."""
    values = {name: graph.value(name) for name in (*inputs, *outputs)}
    if unknown := [name for name, value in values.items() if not value.type.WhichOneof("value")]:
        raise ValueError(f"the file must say the type of {unknown[0]!r}, or it must follow from the nodes before it")
    used = set(names_used(nodes))
    part = helper.make_graph(
        nodes,
        graph.proto.name,
        [values[name] for name in inputs],
        [values[name] for name in outputs],
        [tensor for name, tensor in graph.fixed.items() if name in used],
    )
    return helper.make_model(
        part,
        functions=[function for function in graph.model.functions if function.domain != DOMAIN],
        opset_imports=graph.model.opset_import,
        ir_version=graph.model.ir_version,
    )


def _described(value: ValueInfoProto) -> Value:
    tensor = value.type.tensor_type
    shape = (d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)
    return Value(value.name, tuple(shape), f"tensor({TensorProto.DataType.Name(tensor.elem_type).lower()})")
