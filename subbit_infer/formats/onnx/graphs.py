"""A graph's values: which node makes each and which use it, which are constant, and the constants' values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from subbit_infer.formats.onnx.protos import first_line

_MOST_ELEMENTS = 2**30  # of a constant, and of what it is computed from
_NOT_CONSTANT = {
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"),
    "Dropout",
}
_DEFAULT_DOMAINS = ("", "ai.onnx")


class NotConstantError(ValueError):
    """A value that depends on inputs, or cannot be computed now; the message says why, in a few words."""


@dataclass
class Graph:
    """A model's main graph with its values looked up by name.

    Attributes:
        model: the model, which may be changed; call :meth:`look_up` after that.
        fixed: its initializers that no caller can override.
        makers: the node that gives a value.
        uses: how often a value is used, as an input of a node (also inside a subgraph) or as the graph's output.
    """

    model: ModelProto

    def __post_init__(self) -> None:
        self.look_up()

    @property
    def proto(self) -> GraphProto:
        """The graph."""
        return self.model.graph

    @property
    def opset(self) -> int:
        """The version of the standard operators."""
        return next((o.version for o in self.model.opset_import if o.domain in _DEFAULT_DOMAINS), 1)

    def look_up(self) -> None:
        """Looks up all values."""
        inputs = {value.name for value in self.proto.input}
        self.fixed = {t.name: t for t in self.proto.initializer if t.name not in inputs}
        self.makers = {name: node for node in self.proto.node for name in node.output if name}
        self._values: dict[str, ValueInfoProto] | None = None
        self.uses: dict[str, int] = {}
        for name in [*names_used(self.proto.node), *(value.name for value in self.proto.output)]:
            self.uses[name] = self.uses.get(name, 0) + 1

    def fix_defaults(self) -> None:
        """Turns initializers that a caller could override into constants."""
        names = {tensor.name for tensor in self.proto.initializer}
        for value in [value for value in self.proto.input if value.name in names]:
            self.proto.input.remove(value)
        self.look_up()

    def constant(self, name: str) -> NDArray[np.generic]:
        """The value of a constant: of an initializer, or of what nodes compute from constants alone.

        Raises:
            NotConstantError: it depends on an input, or ONNX Runtime cannot compute it.
        """
        if name in self.fixed:
            return _array(self.fixed[name])
        nodes = self.nodes_behind(name)
        names = {value for node in nodes for value in node.input}
        initializers = [self.fixed[value] for value in names if value in self.fixed]
        model = helper.make_model(
            helper.make_graph(nodes, "constant", [], [ValueInfoProto(name=name)], initializers),
            opset_imports=self.model.opset_import,
            ir_version=max(self.model.ir_version, 4),  # below it initializers must be inputs
        )
        return _computed(model)

    def nodes_behind(self, name: str) -> list[NodeProto]:
        """The nodes that compute a constant, in order; none if it is an initializer.

        Raises:
            NotConstantError: it is not a constant.
        """
        needed: set[str] = set()
        waiting = [name]
        while waiting:
            value = waiting.pop()
            if value in needed or value in self.fixed or not value:
                continue
            needed.add(value)
            node = self.makers.get(value)
            if node is None:
                raise NotConstantError(f"it depends on the input {value!r}")
            if node.domain not in _DEFAULT_DOMAINS or node.op_type in _NOT_CONSTANT or _has_subgraph(node):
                raise NotConstantError(f"it depends on a {node.op_type}")
            waiting += node.input
        return [node for node in self.proto.node if needed & set(node.output)]

    def value(self, name: str) -> ValueInfoProto:
        """A value's type and sizes, as far as the file states them or they follow from it."""
        if self._values is None:
            inferred = onnx.shape_inference.infer_shapes(self.model).graph
            self._values = {v.name: v for v in [*inferred.value_info, *inferred.input, *inferred.output]}
        return self._values.get(name, ValueInfoProto(name=name))

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """A value's sizes, None for unknown ones; None if even their number is unknown."""
        value = self.value(name)
        return _sizes(value) if value.type.tensor_type.HasField("shape") else None

    def remove_unused(self, candidates: list[str]) -> None:
        """Removes nodes and initializers whose values are no longer used, and then what only they used."""
        waiting = list(candidates)
        while waiting:
            name = waiting.pop()
            if self.uses.get(name, 0) > 0:
                continue
            node = self.makers.get(name)
            if node is not None:
                if any(self.uses.get(output, 0) for output in node.output) or node not in self.proto.node:
                    continue
                self.proto.node.remove(node)
                for value in node.input:
                    self.uses[value] = self.uses.get(value, 0) - 1
                    waiting.append(value)
            elif name in self.fixed:
                self.proto.initializer.remove(self.fixed.pop(name))
        kept = {name for node in self.proto.node for name in node.output} | {v.name for v in self.proto.input}
        stale = [value for value in self.proto.value_info if value.name not in kept]
        for value in stale:
            self.proto.value_info.remove(value)


def names_used(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """The values that nodes use, including those used inside their subgraphs."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                made = {name for node in inner.node for name in node.output} | {value.name for value in inner.input}
                made |= {tensor.name for tensor in inner.initializer}
                used = [*names_used(inner.node), *(value.name for value in inner.output)]
                yield from (name for name in used if name not in made)


def _has_subgraph(node: NodeProto) -> bool:
    return any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute)


def _array(tensor: TensorProto) -> NDArray[np.generic]:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise NotConstantError(f"the tensor {tensor.name!r} is broken: {first_line(error)}") from error


def _sizes(value: ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)


def _computed(model: ModelProto) -> NDArray[np.generic]:
    """The one output of a model without inputs; sizes are checked before anything is computed."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        for value in [*inferred.value_info, *inferred.output]:
            sizes = _sizes(value)
            if math.prod(size or 1 for size in sizes) > _MOST_ELEMENTS:
                raise NotConstantError(f"the constant {value.name!r} has sizes {sizes}")
        model.graph.output[0].CopyFrom(inferred.output[0])
        if not model.graph.output[0].type.HasField("tensor_type"):
            raise NotConstantError("the type of the constant does not follow from the file")
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result: NDArray[np.generic] = session.run(None, {})[0]
    except NotConstantError:
        raise
    except Exception as error:  # ONNX Runtime's own exceptions derive from nothing narrower
        raise NotConstantError(f"ONNX Runtime cannot compute it: {first_line(error)}") from error
    return result
