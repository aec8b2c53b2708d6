"""What a graph module does before its first operator and after its last one, made cheap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

_GUARDS = "_guards_fn"  # as torch.export calls the module that checks inputs


class GuardedOnce(nn.Module):
    """The checks of sizes that torch.export puts before a graph, skipped for sizes that have just passed them.

    The checks take 20 us, the comparison 1 us.

    Args:
        guards: the module that torch.export made; it raises AssertionError.
    """

    _is_impure = True  # its call has no reader, and stays

    def __init__(self, guards: nn.Module) -> None:
        super().__init__()
        self.guards = guards
        self._passed: Any = None

    def forward(self, *inputs: Any) -> None:
        """Checks the inputs of the graph."""
        if torch.compiler.is_compiling() or not all(type(x) is Tensor for x in inputs):
            self.guards(*inputs)  # a tracer must see the checks; a number may have any value
            return
        given = [(x.shape, x.stride()) for x in inputs]
        if given != self._passed:
            self.guards(*inputs)
            self._passed = given


def guard_once(module: fx.GraphModule) -> None:
    """Makes a graph check the sizes of its inputs only if they differ from those of the last call."""
    guards = getattr(module, _GUARDS, None)
    if isinstance(guards, nn.Module):
        setattr(module, _GUARDS, GuardedOnce(guards))


def flatten_signature(module: fx.GraphModule) -> None:
    """Lets a graph of positional tensors and one output be called without flattening trees: 15 us a call.

    Other signatures are left as they are.
    """
    graph = module.graph
    info = getattr(graph._codegen, "pytree_info", None)
    if info is None or info.out_spec is None or not info.out_spec.is_leaf():
        return
    positional, named = info.in_spec.children()
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if named.num_leaves or not all(spec.is_leaf() for spec in positional.children()):
        return
    if len(inputs) != len(info.orig_args):
        return
    for node, name in zip(inputs, info.orig_args, strict=True):
        node.target = name
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = (output.args[0][0],)
    graph.set_codegen(fx.graph.CodeGen())
