"""Sites become SubbitConv2d and SubbitLinear, in a graph module of their own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from subbit_infer.conversion.graph.signature import flatten_signature, guard_once
from subbit_infer.conversion.graph.sites import Site, sites
from subbit_infer.core.weight import PackedWeight
from subbit_infer.nn import SubbitConv2d, SubbitLinear

# A view was right for the strides that the dense convolution gave; of packed activations a layer gives channels_last.
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def to_layers(module: fx.GraphModule) -> fx.GraphModule:
    """Puts a layer, under the name that it had, in the place of each site.

    Returns:
        A graph module that holds what the graph still uses, and nothing else.
    """
    graph = module.graph
    graph.eliminate_dead_code()
    taken = {place for node in graph.nodes if node.op == "get_attr" for place in _places(str(node.target))}
    for node, site in sites(graph):
        name = _free_name(site.name, taken)
        taken.add(name)
        module.add_submodule(name, _layer(site))
        with graph.inserting_before(node):
            new = graph.call_module(name, tuple(node.args))
        new.meta = {key: value for key, value in node.meta.items() if key != "site"}
        node.replace_all_uses_with(new, propagate_meta=False)
        graph.erase_node(node)
    for node in graph.nodes:
        if node.target in _VIEWS:
            node.target = torch.ops.aten.reshape.default
    graph.eliminate_dead_code()
    guard_once(module)
    flatten_signature(module)
    result = fx.GraphModule(module, graph, class_name=type(module).__name__)
    result.recompile()
    return result.eval()


def _layer(site: Site) -> SubbitConv2d | SubbitLinear:
    bare = site.weight
    weight = PackedWeight(
        bare.packed_indices,
        bare.packed_codebook,
        bare.units,
        bare.codewords,
        bare.unit,
        _float(site.scale, bare.packed_indices),
        _float(site.bias, bare.packed_indices),
    )
    vectors = {"slope": site.slope, "shift": site.shift, "pack_shift": site.pack_shift}
    like = bare.packed_indices
    options = {
        **{name: _float(vector, like) for name, vector in vectors.items()},
        "activation_bits": site.activation_bits,
        "sign_zero": site.sign_zero,
        "activation": site.activation,
        "output": site.output,
        "pack_sign_zero": site.pack_sign_zero,
    }
    if site.geometry is None:
        return SubbitLinear.from_packed(weight, **options)  # type: ignore[arg-type]
    return SubbitConv2d.from_packed(weight, **site.geometry, **options)  # type: ignore[arg-type]


def _float(vector: Tensor | None, like: Tensor) -> Tensor | None:
    return None if vector is None else vector.float().to(like.device)


def _free_name(name: str, taken: set[str]) -> str:
    """The name, with a number after it where a layer, or a tensor that the graph reads, has that name."""
    number, free = 2, name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def _places(target: str) -> Iterator[str]:
    """Of the modules that a tensor is in."""
    while target := target.rpartition(".")[0]:
        yield target
