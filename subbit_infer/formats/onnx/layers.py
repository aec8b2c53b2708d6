"""Nodes of our domain as layers that run our kernels."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from onnx import NodeProto, helper
from torch import Tensor

from subbit_infer.core import codebook as codebooks
from subbit_infer.core import reference
from subbit_infer.core.bits import byte_count, unpack_bits
from subbit_infer.core.weight import PackedWeight, check_indices
from subbit_infer.formats.onnx.functions import CONV_ATTRIBUTES, DOMAIN, INPUTS, KINDS, WEIGHT_ATTRIBUTES, Kind
from subbit_infer.formats.onnx.graphs import Graph, NotConstantError
from subbit_infer.nn import SubbitConv2d, SubbitLinear

_LENGTHS = {"unit": 3, "strides": 2, "pads": 4, "dilations": 2}  # of attributes that are lists


def layer_of(graph: Graph, node: NodeProto) -> torch.nn.Module:
    """The layer that computes what a node of our domain does, from x alone.

    Raises:
        ValueError: the node is not one that :func:`subbit_infer.onnx.convert` or ``export`` makes.
    """
    where = f"node {node.name or node.output[0]!r}"
    kind = KINDS.get(node.op_type)
    if kind is None:
        raise ValueError(f"{where}: the operator must be one of {', '.join(KINDS)}, got {node.op_type}")
    if len(node.input) != len(INPUTS) or len(node.output) != 1:
        raise ValueError(f"{where} must have the inputs {', '.join(INPUTS)} and one output")
    get = _attributes(where, kind, node)
    weight = _packed_weight(where, graph, node, get)
    if kind.is_linear:
        if weight.unit[1:] != (1, 1):
            raise ValueError(f"{where}: unit must be of 1x1 taps, got {weight.unit}")
        return SubbitLinear.from_packed(weight, activation_bits=kind.activation_bits, sign_zero=kind.sign_zero)
    if get["group"] < 1 or weight.out_channels % get["group"]:
        raise ValueError(f"{where}: group must divide C_out = {weight.out_channels}, got {get['group']}")
    if min(get["strides"]) < 1 or min(get["dilations"]) < 1 or min(get["pads"]) < 0:
        raise ValueError(f"{where}: strides and dilations must be at least 1 and pads at least 0, got {get}")
    top, left, bottom, right = get["pads"]
    is_even = (top, left) == (bottom, right)
    conv = SubbitConv2d.from_packed(
        weight,
        stride=tuple(get["strides"]),
        padding=(top, left) if is_even else 0,
        dilation=tuple(get["dilations"]),
        groups=get["group"],
        activation_bits=kind.activation_bits,
        sign_zero=kind.sign_zero if is_even else 0,
    )
    return conv if is_even else _Padded(conv, kind, (left, right, top, bottom))


class _Padded(torch.nn.Module):
    """A convolution of an input that is padded differently on opposite sides.

    Args:
        conv: the convolution without padding.
        kind: the operator that it is part of.
        pads: left, right, top, bottom.
    """

    def __init__(self, conv: SubbitConv2d, kind: Kind, pads: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv, self.kind, self.pads = conv, kind, pads

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H_out, W_out)."""
        if self.kind.activation_bits == 1:  # before padding, whose zeros have no sign
            x = reference.binarize(x, self.kind.sign_zero)
        return cast("Tensor", self.conv(F.pad(x, self.pads)))


def _attributes(where: str, kind: Kind, node: NodeProto) -> dict[str, Any]:
    get = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    for name in (*WEIGHT_ATTRIBUTES, *(() if kind.is_linear else CONV_ATTRIBUTES)):
        value, length = get.get(name), _LENGTHS.get(name)
        numbers = [value] if length is None else value
        if not isinstance(numbers, list) or len(numbers) != (length or 1) or any(type(v) is not int for v in numbers):
            raise ValueError(f"{where}: {name} must be {length or 'an'} integer{'s' * bool(length)}, got {value!r}")
    return get


def _packed_weight(where: str, graph: Graph, node: NodeProto, get: dict[str, Any]) -> PackedWeight:
    """The node's weight, checked before anything is unpacked."""
    try:
        arrays = [graph.constant(name) for name in node.input[1:]]
    except NotConstantError as error:
        raise ValueError(f"{where} must have a constant weight: {error}") from error
    units, codewords, unit = get["units"], get["codewords"], get["unit"]
    if not 1 <= codewords <= codebooks.MAX_CODEWORDS or units < 1 or min(unit) < 1:
        raise ValueError(
            f"{where} must have units and sides of units of at least 1 and 1 to {codebooks.MAX_CODEWORDS} codewords, "
            f"got {units}, {unit}, {codewords}"
        )
    tau = codebooks.tau_of(codewords)
    if get["tau"] != tau:
        raise ValueError(f"{where}: tau must be {tau} for {codewords} codewords, got {get['tau']}")
    rows = arrays[0].shape[0] if arrays[0].ndim else 0
    taps = unit[0] * unit[1] * unit[2]
    shapes = ((rows, byte_count(units * tau)), (byte_count(codewords * taps),), (rows,), (rows,))
    for part, array, shape, dtype in zip(
        INPUTS[1:], arrays, shapes, ("uint8", "uint8", "float32", "float32"), strict=True
    ):
        if rows < 1 or array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{where}: {part} must be {dtype} of shape {shape}, got {array.dtype} {array.shape}")
    indices, codebook, scale, bias = (torch.tensor(array) for array in arrays)
    try:
        check_indices(unpack_bits(indices, units, tau), codewords)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return PackedWeight(
        indices,
        codebook,
        units,
        codewords,
        (unit[0], unit[1], unit[2]),
        None if bool((scale == 1).all()) else scale,
        None if bool((bias == 0).all()) else bias,
    )


def layer_nodes(graph: Graph) -> list[NodeProto]:
    """The nodes of our domain.

    Raises:
        ValueError: there is none.
    """
    nodes = [node for node in graph.proto.node if node.domain == DOMAIN]
    if not nodes:
        raise ValueError(f"the file must have nodes of the domain {DOMAIN}, it has none; convert makes them")
    return nodes
