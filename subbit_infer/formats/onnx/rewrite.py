"""Converts ONNX files: convolutions and matrix products with sub-bit weights become nodes of our domain."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from subbit_infer.conversion.detection import NotSubbitError, recognize
from subbit_infer.conversion.report import LayerReport, Report
from subbit_infer.core.weight import PackedWeight
from subbit_infer.formats.onnx.functions import (
    DOMAIN,
    DOMAIN_VERSION,
    KINDS,
    LEAST_IR_VERSION,
    LEAST_OPSET,
    Kind,
    function,
)
from subbit_infer.formats.onnx.graphs import Graph, NotConstantError
from subbit_infer.formats.onnx.protos import first_line, read, write

_LAYERS = ("Conv", "Gemm", "MatMul")


def convert(path_in: str | os.PathLike[str], path_out: str | os.PathLike[str]) -> Report:
    """Writes a file that computes the same and holds sub-bit weights packed.

    Every Conv, Gemm and MatMul of the main graph becomes a node of the domain ``subbit_infer`` if its weight is
    constant (an initializer, or computed from such) and sub-bit; a preceding Sign becomes part of it. The file also
    defines the node as a function of standard operators, so any ONNX runtime can run it; :func:`subbit_infer.onnx.load`
    runs it with our kernels. Everything else stays as it was. External data is moved into the file.

    Args:
        path_in: an ONNX file.
        path_out: the file to write; it may be the same one.

    Returns:
        What was done to each layer, by name of its node or, where that has none, of its output.

    Raises:
        FileNotFoundError: there is no file ``path_in``.
        OSError: ``path_out`` cannot be written.
        ValueError: ``path_in`` is not a valid ONNX file, or nothing in it can be converted. Then nothing is written.
    """
    model = read(path_in)
    notes = _raise_versions(model, path_in)
    graph = Graph(model)
    layers = [_convert_node(graph, node) for node in list(graph.proto.node) if node.op_type in _LAYERS]
    report = Report(tuple(layer for layer in layers if layer is not None), tuple(notes))
    if not report.converted:
        reasons = Counter(layer.why for layer in report.skipped).most_common(3)
        text = "; ".join(f"{why} ({count})" for why, count in reasons) or f"it has no {', '.join(_LAYERS)} of constants"
        raise ValueError(f"nothing to convert in {path_in}: {text}")
    add_functions(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"{path_in} does not convert to a valid model: {first_line(error)}") from error
    write(model, path_out)
    return report


def add_functions(model: ModelProto) -> None:
    """Adds the functions of the nodes of our domain that the model has, and imports the domain.

    Raises:
        ValueError: the model has another function of such a name.
    """
    opset = Graph(model).opset
    present = {f.name: f for f in model.functions if f.domain == DOMAIN}
    for op_type in sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN}):
        ours = function(KINDS[op_type], opset)
        if op_type not in present:
            model.functions.append(ours)
        elif present[op_type] != ours:
            raise ValueError(f"the file's function {DOMAIN}.{op_type} must be that of this version, it is another")
    if DOMAIN not in {o.domain for o in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))


def pack_node(
    graph: Graph,
    kind: Kind,
    name: str,
    x: str,
    y: str,
    weight: PackedWeight,
    **attributes: int | list[int],
) -> NodeProto:
    """A node of our domain, whose tensors become initializers of the graph.

    Args:
        graph: gets the initializers.
        kind: the operator.
        name: the node's name; those of the initializers begin with it.
        x: name of the input.
        y: name of the output.
        weight: the packed weight.
        attributes: strides, pads, dilations and group of a convolution.
    """
    vectors = {"scale": (weight.scale, 1.0), "bias": (weight.bias, 0.0)}
    tensors = {"indices": weight.packed_indices.numpy(), "codebook": weight.packed_codebook.numpy()}
    for vector, (values, usual) in vectors.items():
        tensors[vector] = np.full(weight.out_channels, usual, np.float32) if values is None else values.numpy()
    inputs = [x]
    taken = {*graph.uses, *graph.makers, *(t.name for t in graph.proto.initializer)}
    for part, array in tensors.items():
        inputs.append(_fresh(f"{name or y}.{part}", taken))
        graph.proto.initializer.append(numpy_helper.from_array(array, inputs[-1]))
    return helper.make_node(
        kind.op_type,
        inputs,
        [y],
        name,
        domain=DOMAIN,
        units=weight.units,
        codewords=weight.codewords,
        tau=weight.tau,
        unit=list(weight.unit),
        **attributes,  # type: ignore[arg-type]  # onnx types them as its own arguments
    )


def _fresh(name: str, taken: set[str]) -> str:
    number = 0
    while (found := name if not number else f"{name}_{number}") in taken:
        number += 1
    return found


class _Layer(NamedTuple):
    """What a node computes, in our terms."""

    weight: NDArray[np.generic]  # (C_out, C_in / groups, kh, kw) or (C_out, C_in)
    bias: NDArray[np.generic] | None
    attributes: dict[str, int | list[int]]


def _convert_node(graph: Graph, node: NodeProto) -> LayerReport | None:
    """Replaces a node with one of our domain, if possible; None for a product of two inputs."""
    name, shape = node.name or node.output[0], ()
    if node.domain not in ("", "ai.onnx"):
        return None
    try:
        weight = graph.constant(node.input[1])
    except NotConstantError as error:
        return None if node.op_type == "MatMul" else LayerReport(name, (), why=f"the weight is not constant: {error}")
    shape = weight.shape
    try:
        layer = _layer(graph, node, weight)
        shape = layer.weight.shape
        if layer.weight.dtype != np.float32:
            raise NotSubbitError(f"weights are {layer.weight.dtype}")
        dense = torch.tensor(layer.weight)
        packed = recognize(dense, None if layer.bias is None else torch.tensor(layer.bias))
    except NotSubbitError as error:
        return LayerReport(name, shape, why=str(error))
    except NotConstantError as error:
        return LayerReport(name, shape, why=f"the bias is not constant: {error}")
    sign = graph.makers.get(node.input[0])
    takes_sign = sign is not None and sign.op_type == "Sign" and sign.domain in ("", "ai.onnx")
    kind = Kind(node.op_type != "Conv", 1 if takes_sign else 32, 0)
    x = sign.input[0] if sign is not None and takes_sign else node.input[0]
    ours = pack_node(graph, kind, node.name, x, node.output[0], packed, **layer.attributes)
    ours.doc_string = node.doc_string
    ours.metadata_props.extend(node.metadata_props)
    unused = [value for value in node.input if value]
    node.CopyFrom(ours)
    graph.look_up()
    graph.remove_unused(unused)
    return LayerReport.of_weight(name, shape, packed, kind.activation_bits)


def _layer(graph: Graph, node: NodeProto, weight: NDArray[np.generic]) -> _Layer:
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    bias = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if node.op_type == "Conv":
        if weight.ndim != 4:
            raise NotSubbitError(f"the weight has shape {weight.shape}")
        return _Layer(weight, bias, _geometry(graph, node, weight, given))
    if weight.ndim != 2:
        raise NotSubbitError(f"the weight has shape {weight.shape}")
    if node.op_type == "MatMul":
        return _Layer(weight.T, None, {})
    if given.get("transA", 0):
        raise NotSubbitError("its input is transposed")
    alpha, beta = (np.array(given.get(name, 1.0), np.float32) for name in ("alpha", "beta"))
    weight = weight if given.get("transB", 0) else weight.T
    if bias is not None:
        if bias.size not in (1, weight.shape[0]) or bias.shape[:-1] not in ((), (1,)):
            raise NotSubbitError(f"what it adds has shape {bias.shape}")
        bias = np.broadcast_to(np.multiply(bias.reshape(-1), beta), weight.shape[:1])
    return _Layer(weight if alpha == 1 else np.multiply(weight, alpha), bias, {})


def _geometry(
    graph: Graph, node: NodeProto, weight: NDArray[np.generic], given: dict[str, Any]
) -> dict[str, int | list[int]]:
    """Strides, pads, dilations and group of a Conv, in numbers."""
    strides, dilations = (list(given.get(name, (1, 1))) for name in ("strides", "dilations"))
    auto_pad = given.get("auto_pad", b"NOTSET").decode()
    if auto_pad == "NOTSET":
        pads = list(given.get("pads", (0, 0, 0, 0)))
    elif auto_pad == "VALID":
        pads = [0, 0, 0, 0]
    else:
        pads = _same_pads(graph, node, auto_pad, weight.shape[2:], strides, dilations)
    return {"strides": strides, "pads": pads, "dilations": dilations, "group": given.get("group", 1)}


def _same_pads(
    graph: Graph, node: NodeProto, auto_pad: str, kernel: tuple[int, ...], strides: list[int], dilations: list[int]
) -> list[int]:
    """Pads for ceil(size / stride) outputs; an odd one goes below and right (SAME_UPPER), or above and left."""
    sizes = (graph.shape(node.input[0]) or (None,) * 4)[2:]
    before, after = [], []
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        if size is None and stride != 1:
            raise NotSubbitError(f"{auto_pad} at stride {stride} of an input whose size the file does not say")
        over = 0 if size is None else (-(-size // stride) - 1) * stride - size + 1
        total = max(dilation * (taps - 1) + over, 0)
        before.append(total // 2 if auto_pad == "SAME_UPPER" else total - total // 2)
        after.append(total - before[-1])
    return before + after


def _raise_versions(model: ModelProto, path: str | os.PathLike[str]) -> list[str]:
    """Raises a model to versions that have functions; returns notes on what was raised."""
    notes = []
    opset = Graph(model).opset
    if opset < LEAST_OPSET:
        try:
            model.CopyFrom(onnx.version_converter.convert_version(model, LEAST_OPSET))
        except RuntimeError as error:
            raise ValueError(
                f"{path} must have opset {LEAST_OPSET} or newer; from {opset} it cannot be raised: {first_line(error)}"
            ) from error
        notes.append(f"The opset was raised from {opset} to {LEAST_OPSET}.")
    if model.ir_version < LEAST_IR_VERSION:
        if model.ir_version < 4:  # there initializers had to be inputs too
            Graph(model).fix_defaults()
        notes.append(f"The IR version was raised from {model.ir_version} to {LEAST_IR_VERSION}.")
        model.ir_version = LEAST_IR_VERSION
    return notes
