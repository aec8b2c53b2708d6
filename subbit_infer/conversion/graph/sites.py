"""A sub-bit layer while its graph is rewritten: a node of the graph, and all that the layer will be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from subbit_infer.core.weight import PackedWeight


@dataclass
class Site:
    """What will be a layer: ``act(scale * sums + bias + residual) + shift``.

    Attributes:
        name: of the layer that it was.
        weight: its indices and codebook, without scale and bias.
        geometry: stride, padding, dilation and groups; None of a linear layer.
        scale: (C_out,) float64; bias, slope, shift and pack_shift are such vectors too, or None.
        bias: added to the scaled sums.
        activation_bits: 1 where it takes the sign of its input.
        sign_zero: what the sign of 0 is then.
        activation: as in :func:`subbit_infer.conv`.
        slope: of "prelu".
        shift: added after the activation.
        output: "float", "packed" or "both".
        pack_shift: added before the signs of a packed output.
        pack_sign_zero: what a sign of 0 becomes in it.
    """

    name: str
    weight: PackedWeight
    geometry: dict[str, Any] | None
    scale: Tensor | None
    bias: Tensor | None
    activation_bits: int = 32
    sign_zero: int = 0
    activation: str = "none"
    slope: Tensor | None = None
    shift: Tensor | None = None
    output: str = "float"
    pack_shift: Tensor | None = None
    pack_sign_zero: int = 0

    @property
    def channels(self) -> int:
        """Output channels."""
        return self.weight.out_channels

    @property
    def dimensions_after_channels(self) -> int:
        """Of the output: height and width, or none."""
        return 0 if self.geometry is None else 2

    @property
    def is_linear_so_far(self) -> bool:
        """Whether a multiplication can still go into the scale."""
        return self.activation == "none" and self.shift is None


def layer(x: Any, residual: Any = None) -> Any:
    """Stands for a site's layer, which is in its node's ``meta["site"]``; graphs that run have none."""
    raise AssertionError("a site is no function to call")


def site_of(node: Any) -> Site | None:
    """The site that a node is, if it is one."""
    return node.meta["site"] if isinstance(node, fx.Node) and node.target is layer else None


def sites(graph: fx.Graph) -> list[tuple[fx.Node, Site]]:
    """All sites of a graph, in order."""
    return [(node, node.meta["site"]) for node in graph.nodes if node.target is layer]


def put(graph: fx.Graph, at: fx.Node, args: tuple[Any, ...], site: Site) -> fx.Node:
    """Puts a site in the place of a node, whose shape and dtype it has."""
    with graph.inserting_before(at):
        node = graph.call_function(layer, args)
    node.meta = {**at.meta, "site": site}
    at.replace_all_uses_with(node, propagate_meta=False)
    graph.erase_node(at)
    return node


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """The sizes of what a node gives; they may be symbols."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def dtype_of(node: fx.Node) -> torch.dtype | None:
    """The dtype of what a node gives."""
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None
