"""Our operators in an ONNX file: model-local functions of standard operators, which any ONNX runtime can run.

A node of the domain ``subbit_infer`` has the inputs x, indices, codebook, scale and bias. Indices and codebook are
uint8, packed as :class:`~subbit_infer.PackedWeight` describes; scale and bias are float32 (C_out,). The function's
body decodes the weight. All that it decodes from is constant, so ONNX Runtime does it once, when it loads the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import AttributeProto, FunctionProto, NodeProto, helper, numpy_helper

DOMAIN = "subbit_infer"
DOMAIN_VERSION = 1
LEAST_OPSET = 12  # Constant takes integers from here on
LEAST_IR_VERSION = 8  # functions

INPUTS = ("x", "indices", "codebook", "scale", "bias")
WEIGHT_ATTRIBUTES = ("units", "codewords", "tau", "unit")
CONV_ATTRIBUTES = ("strides", "pads", "dilations", "group")


class Kind(NamedTuple):
    """What an operator of the domain computes."""

    is_linear: bool
    activation_bits: int
    sign_zero: int

    @property
    def op_type(self) -> str:
        """The operator's name: Sign... takes the sign of x first, Binary... the sign with +1 for 0."""
        prefix = "" if self.activation_bits == 32 else "Binary" if self.sign_zero else "Sign"
        return prefix + ("Linear" if self.is_linear else "Conv2d")


KINDS = {
    kind.op_type: kind
    for kind in (Kind(linear, *signs) for linear in (False, True) for signs in ((32, 0), (1, 0), (1, 1)))
}


def function(kind: Kind, opset: int) -> FunctionProto:
    """The function of an operator.

    Args:
        kind: what it computes.
        opset: the version of the standard operators that the model imports, at least :data:`LEAST_OPSET`.
    """
    body = _Body()
    weight = _decode(body)
    if kind.is_linear:
        weight = body.add("Transpose", body.add("Reshape", weight, body.ints(0, -1)), perm=[1, 0])
    of_channels = body.ints(-1) if kind.is_linear else body.ints(-1, 1, 1)
    if kind.activation_bits == 32:
        per_row = body.ints(1, -1) if kind.is_linear else body.ints(-1, 1, 1, 1)
        weight = body.add("Mul", weight, body.add("Reshape", "scale", per_row))
        if kind.is_linear:
            body.add("Add", body.add("MatMul", "x", weight), "bias", output="y")
        else:
            _convolve(body, "x", weight, "bias", output="y")
    else:
        signs = body.add("Sign", "x")
        if kind.sign_zero:
            is_zero = body.add("Equal", "x", body.constant(np.float32(0)))
            signs = body.add("Where", is_zero, body.constant(np.float32(1)), signs)
        sums = body.add("MatMul", signs, weight) if kind.is_linear else _convolve(body, signs, weight)
        # Scaled after the sums, which are whole numbers and so exact. ONNX Runtime would move a second factor into the
        # weight (ConvMulFusion) and round every product; it leaves a first factor where it is.
        scaled = body.add("Mul", body.add("Reshape", "scale", of_channels), sums)
        body.add("Add", body.add("Reshape", "bias", of_channels), scaled, output="y")
    return helper.make_function(
        DOMAIN,
        kind.op_type,
        list(INPUTS),
        ["y"],
        body.nodes,
        [helper.make_opsetid("", opset)],
        attributes=[*WEIGHT_ATTRIBUTES, *(() if kind.is_linear else CONV_ATTRIBUTES)],
    )


class _Body:
    """The nodes of a function; every value gets its own name."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []

    def add(self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Appends a node, and gives the name of its output."""
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        """A tensor."""
        return self.add("Constant", value=numpy_helper.from_array(np.asarray(value)))

    def ints(self, *values: int) -> str:
        """An int64 tensor of one dimension."""
        return self.constant(np.array(values, dtype=np.int64))

    def attribute(self, name: str, *, is_list: bool = False) -> str:
        """An integer attribute of the function, or a list of them, as an int64 tensor of one dimension."""
        kind = AttributeProto.INTS if is_list else AttributeProto.INT
        value = self.add("Constant")
        self.refer(self.nodes[-1], "value_ints" if is_list else "value_int", kind, name)
        return value if is_list else self.add("Reshape", value, self.ints(1))

    def refer(self, node: NodeProto, attribute: str, kind: int, name: str) -> None:
        """Gives a node's attribute the value of the function's attribute of that name."""
        node.attribute.append(AttributeProto(name=attribute, type=kind, ref_attr_name=name))  # type: ignore[arg-type]


def _convolve(body: _Body, x: str, weight: str, *bias: str, output: str | None = None) -> str:
    y = body.add("Conv", x, weight, *bias, output=output)
    for name in CONV_ATTRIBUTES:
        body.refer(body.nodes[-1], name, AttributeProto.INT if name == "group" else AttributeProto.INTS, name)
    return y


def _bits(body: _Body, packed: str, shape: Sequence[int]) -> str:
    """Bytes as bits, the least significant first: (..., n) uint8 to int32 of ``shape``.

    By Div and Mod, because BitwiseAnd is in the standard only from opset 18 on.
    """
    places = body.constant(2 ** np.arange(8, dtype=np.int32))
    wide = body.add("Cast", packed, to=helper.np_dtype_to_tensor_dtype(np.dtype(np.int32)))
    shifted = body.add("Div", body.add("Reshape", wide, body.ints(*shape[:-1], -1, 1)), places)
    return body.add("Reshape", body.add("Mod", shifted, body.constant(np.int32(2))), body.ints(*shape))


def _as_float(body: _Body, value: str) -> str:
    return body.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(np.float32)))


def _decode(body: _Body) -> str:
    """The dense weight without scale, (C_out, units * g, kh, kw) float32 of +-1."""
    units, codewords, tau = (body.attribute(name) for name in ("units", "codewords", "tau"))
    unit = body.attribute("unit", is_list=True)
    zero, one = body.ints(0), body.ints(1)
    bits = body.add("Slice", _bits(body, "indices", (0, -1)), zero, body.add("Mul", units, tau), one)
    bits = body.add("Reshape", bits, body.add("Concat", zero, units, tau, axis=0))
    places = body.add("Slice", body.constant(2.0 ** np.arange(8, dtype=np.float32)), zero, tau, zero)
    # A product of floats, exact for these small numbers: ReduceSum takes its axes another way since opset 13.
    numbers = body.add("MatMul", _as_float(body, bits), places)
    indices = body.add("Cast", numbers, to=helper.np_dtype_to_tensor_dtype(np.dtype(np.int64)))
    taps = body.add("ReduceProd", unit, keepdims=1)
    signs = body.add("Slice", _bits(body, "codebook", (-1,)), zero, body.add("Mul", codewords, taps), zero)
    signs = body.add("Reshape", _as_float(body, signs), body.add("Concat", codewords, taps, axis=0))
    signs = body.add("Sub", body.add("Mul", signs, body.constant(np.float32(2))), body.constant(np.float32(1)))
    kernel = body.add("Slice", unit, one, body.ints(3), zero)
    units_in_order = body.add("Gather", signs, indices, axis=0)
    return body.add("Reshape", units_in_order, body.add("Concat", body.ints(0, -1), kernel, axis=0))
