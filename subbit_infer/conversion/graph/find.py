"""Finds convolutions and products with a constant sub-bit weight, and puts sites in their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from subbit_infer.conversion.detection import NotSubbitError, recognize
from subbit_infer.conversion.graph.constants import Constants, exact, plain
from subbit_infer.conversion.graph.sites import Site, dtype_of, put
from subbit_infer.conversion.report import LayerReport
from subbit_infer.core.conv_args import FLOATS
from subbit_infer.core.weight import PackedWeight

aten = torch.ops.aten


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a node that calls an operator, by name, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: given.get(a.name, a.default_value) for a in schema.arguments}


@dataclass
class _Product:
    """A convolution, or a product with a matrix where geometry is None."""

    x: fx.Node
    weight: Any
    bias: Any
    geometry: dict[str, Any] | None
    is_transposed: bool = False  # the weight


def _product(node: fx.Node) -> _Product | None:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    if node.target in (aten.conv2d.default, aten.conv2d.padding, aten.convolution.default):
        a = arguments(node)
        if a.get("transposed") or len(a["stride"]) != 2:
            return None
        padding = a["padding"]
        geometry = {name: _short(a[name]) for name in ("stride", "dilation")}
        geometry |= {"padding": padding if isinstance(padding, str) else _short(padding), "groups": a["groups"]}
        return _Product(a["input"], a["weight"], a["bias"], geometry)
    if node.target is aten.linear.default:
        a = arguments(node)
        return _Product(a["input"], a["weight"], a["bias"], None)
    if node.target is aten.addmm.default and not node.kwargs:
        bias, x, weight = node.args
        assert isinstance(x, fx.Node)
        return _Product(x, weight, bias, None, is_transposed=True)
    if node.target is aten.mm.default:
        x, weight = node.args
        assert isinstance(x, fx.Node)
        return _Product(x, weight, None, None, is_transposed=True)
    return None


def _short(value: Any) -> Any:
    """One number for two equal ones, which every call checks faster."""
    return value[0] if len(set(value)) == 1 else tuple(value)


def find(module: fx.GraphModule, constants: Constants) -> list[LayerReport]:
    """Puts sites in the place of what is sub-bit.

    Args:
        module: its graph is changed.
        constants: of the module.

    Returns:
        What was found of every convolution and product with a constant weight, in order.
    """
    reports = []
    names: Counter[str] = Counter()
    packed: dict[Any, PackedWeight] = {}  # weights that several nodes share are packed once

    def name_of(node: fx.Node, weight: Any) -> str:
        name = _name(node, weight)
        names[name] += 1
        return name + (f"_{names[name]}" if names[name] > 1 else "")

    for node in list(module.graph.nodes):
        if node.target is torch.ops.subbit_infer.conv2d.default:
            reports += _resume(module, node, constants, name_of)
            continue
        product = _product(node)
        if product is None:
            continue
        weight = constants.tensor(product.weight)
        name = name_of(node, product.weight)
        if weight is None:
            reports.append(LayerReport(name, (), why="its weight depends on the input"))
            continue
        weight = weight.t() if product.is_transposed else weight
        try:
            bias = _bias(product, constants, weight.shape[0])
            if dtype_of(product.x) not in FLOATS:
                raise NotSubbitError(f"its input is {str(dtype_of(product.x)).removeprefix('torch.')}")
            if product.weight not in packed:
                packed[product.weight] = recognize(weight)
        except NotSubbitError as error:
            reports.append(LayerReport(name, tuple(weight.shape), why=str(error)))
            continue
        whole = packed[product.weight]
        bare = PackedWeight(whole.packed_indices, whole.packed_codebook, whole.units, whole.codewords, whole.unit)
        scale = None if whole.scale is None else exact(whole.scale)
        site = Site(name, bare, product.geometry, scale, bias)
        put(module.graph, node, (product.x,), site)
        reports.append(LayerReport.of_weight(name, tuple(weight.shape), whole, 32))
    return reports


def _resume(
    module: fx.GraphModule, node: fx.Node, constants: Constants, name_of: Callable[[fx.Node, Any], str]
) -> list[LayerReport]:
    """A call of a sub-bit layer becomes a site again, if all of it is constant."""
    a = arguments(node)
    vectors = {name: a[name] for name in ("scale", "bias", "slope", "shift")}
    fixed = [a["packed_indices"], a["packed_codebook"], *(v for v in vectors.values() if v is not None)]
    if not all(constants.is_constant(value) for value in fixed):
        return []
    found: dict[str, Any] = {name: None if v is None else exact(constants.value(v)) for name, v in vectors.items()}
    unit: tuple[int, int, int] = tuple(a["unit"])
    indices, codebook = constants.value(a["packed_indices"]), constants.value(a["packed_codebook"])
    weight = PackedWeight(indices, codebook, a["units"], a["codewords"], unit)
    geometry = {name: _short(a[name]) for name in ("stride", "padding", "dilation")} | {"groups": a["groups"]}
    site = Site(
        name_of(node, a["packed_indices"]),
        weight,
        geometry,
        activation_bits=a["activation_bits"],
        sign_zero=a["sign_zero"],
        activation=a["activation"],
        **found,
    )
    residual = a["residual"]
    put(module.graph, node, (a["x"],) if residual is None else (a["x"], residual), site)
    channels = weight.units * weight.unit[0]
    stored = replace(
        weight, **{name: constants.value(v) for name in ("scale", "bias") if (v := vectors[name]) is not None}
    )
    shape = (weight.out_channels, channels, *weight.unit[1:])
    return [LayerReport.of_weight(site.name, shape, stored, site.activation_bits)]


def _bias(product: _Product, constants: Constants, channels: int) -> Tensor | None:
    if product.bias is None:
        return None
    bias = constants.tensor(product.bias)
    if bias is None or tuple(bias.shape) != (channels,):
        raise NotSubbitError("its bias is no constant of one number per channel")
    return exact(bias)


def _name(node: fx.Node, weight: Any) -> str:
    """Of the layer: where its weight is kept, else the module that computes it."""
    weight = plain(weight)
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        module, _, tensor = str(weight.target).rpartition(".")
        if module and tensor in ("weight", "packed_indices"):
            return module
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return path or node.name


def affine_of(norm: fx.Node, constants: Constants) -> tuple[Tensor, Tensor] | None:
    """What a BatchNorm with running statistics multiplies each channel with and then adds: two float64 (C,).

    None where it is in training, or something of it is not constant.
    """
    a = arguments(norm)
    given = [a[name] for name in ("weight", "bias", "running_mean", "running_var")]
    found = [None if value is None else constants.tensor(value) for value in given]
    is_unknown = any(t is None and value is not None for t, value in zip(found, given, strict=True))
    weight, bias, mean, var = (None if t is None else exact(t) for t in found)
    if is_unknown or mean is None or var is None or a.get("training"):
        return None
    gain = (var + a["eps"]).rsqrt()
    gain = gain if weight is None else gain * weight
    return gain, -mean * gain if bias is None else bias - mean * gain
