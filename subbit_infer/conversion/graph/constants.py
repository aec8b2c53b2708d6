"""Constants of a graph, and their values."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

_UNCHANGED = (torch.ops.aten.detach.default, torch.ops.aten.alias.default, torch.ops.aten.lift_fresh_copy.default)


def plain(node: Any) -> Any:
    """What a node that only passes its input on got it from."""
    while isinstance(node, fx.Node) and node.target in _UNCHANGED:
        node = node.args[0]
    return node


class Constants:
    """Values of the nodes of a graph that only depend on its attributes, each computed once."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._values: dict[fx.Node, Any] = {}
        self._depends: dict[fx.Node, bool] = {}

    def is_constant(self, value: Any) -> bool:
        """Whether a node, or number, is known before the graph runs."""
        if not isinstance(value, fx.Node):
            return True
        # Not recursive: a chain may be as long as the graph is.
        waiting = [value]
        while waiting:
            node = waiting[-1]
            if node not in self._depends:
                unknown = [n for n in node.all_input_nodes if n not in self._depends]
                if unknown:
                    waiting += unknown
                    continue
                is_given = node.op in ("placeholder", "call_module", "output") or not _is_pure(node)
                self._depends[node] = is_given or any(self._depends[n] for n in node.all_input_nodes)
            waiting.pop()
        return not self._depends[value]

    def value(self, value: Any) -> Any:
        """What a constant node gives; a number is itself."""
        if not isinstance(value, fx.Node):
            return value
        with torch.no_grad():
            for node in _inputs_first(value, known=self._values):
                self._values[node] = self._run(node)
        return self._values[value]

    def tensor(self, value: Any) -> Tensor | None:
        """The value where it is a constant tensor."""
        found = self.value(value) if isinstance(value, fx.Node) and self.is_constant(value) else None
        return found if isinstance(found, Tensor) else None

    def of_channels(self, value: Any, channels: int, after: int) -> Tensor | None:
        """A constant of one number per channel, or one for all.

        Args:
            value: a node or number.
            channels: how many there are.
            after: how many dimensions follow that of the channels.

        Returns:
            (channels,) float64 on the CPU; None where it is no such constant.
        """
        value = plain(value)
        if isinstance(value, fx.Node) and value.target is torch.ops.aten.expand.default:
            value = value.args[0]  # to sizes that may be those of the input
        if not self.is_constant(value):
            return None
        found = self.value(value)
        if isinstance(found, int | float) and not isinstance(found, bool):
            return torch.full((channels,), float(found), dtype=torch.float64)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            return None
        shape = (*(1 for _ in range(after + 1 - found.dim())), *found.shape)
        place = len(shape) - 1 - after
        if shape[place] not in (1, channels) or any(size != 1 for i, size in enumerate(shape) if i != place):
            return None
        return exact(found).flatten().expand(channels).contiguous()

    def _run(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self._module)
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._values[n])
        return node.target(*args, **kwargs)  # type: ignore[operator]


def exact(numbers: Tensor) -> Tensor:
    """What is folded, as float64, on the CPU: there a model's constants meet numbers that nobody put on a device."""
    return numbers.detach().double().cpu()


def _is_pure(node: fx.Node) -> bool:
    """Whether running a node early, or never, changes nothing else; what is random is not."""
    if node.op == "get_attr":
        return True
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
    return target is operator.getitem


def _inputs_first(node: fx.Node, known: dict[fx.Node, Any]) -> Iterable[fx.Node]:
    """The node and all that it is made of, but for what is known, each after its inputs."""
    order: dict[fx.Node, None] = {}
    waiting = [node]
    while waiting:
        top = waiting[-1]
        missing = [n for n in top.all_input_nodes if n not in known and n not in order]
        if top in known or top in order:
            waiting.pop()
        elif missing:
            waiting += missing
        else:
            order[waiting.pop()] = None
    return order
