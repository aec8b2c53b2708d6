"""A module, or an exported program, as a graph whose weights are attributes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from subbit_infer.core import cost


def capture(model: torch.nn.Module, arguments: tuple[Any, ...]) -> fx.GraphModule:
    """Exports a module, in evaluation mode, with every size of its inputs free that it leaves free.

    Args:
        model: the module; it is left as it was.
        arguments: of a call of it.

    Returns:
        Its graph, of functional ATen operators.

    Raises:
        ValueError: torch.export cannot trace it; the message has its reason.
    """
    arguments = torch.utils._pytree.tree_map(_two_of_one, arguments)
    sizes = torch.utils._pytree.tree_map(_free, arguments)
    with cost.evaluating(model), torch.no_grad():
        try:
            program = torch.export.export(model, arguments, dynamic_shapes=sizes)
        except Exception as free:
            try:
                program = torch.export.export(model, arguments)
            except Exception as error:
                raise ValueError(
                    f"torch.export must be able to trace {type(model).__name__} to rewrite its graph: "
                    f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
                ) from free
    return graph_of(program)


def graph_of(program: ExportedProgram) -> fx.GraphModule:
    """The graph of an exported program, of functional ATen operators; its weights are those of the program."""
    module = program.run_decompositions({}).module()
    assert isinstance(module, fx.GraphModule)
    return module


def _two_of_one(value: Any) -> Any:
    """A batch of two where it is of one: torch.export takes a size of 1 for one that is always 1."""
    if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == 1:
        return value.expand(2, *value.shape[1:]).contiguous()
    return value


def _free(value: Any) -> Any:
    return dict.fromkeys(range(value.dim()), Dim.AUTO) if isinstance(value, Tensor) else None


def example_of(program: ExportedProgram) -> tuple[Any, Any]:
    """Inputs like those that a program was exported with, and which of their sizes are free.

    Returns:
        Two pairs of the positional and the keyword arguments: tensors of ones, and for each of them ``{dimension:
        Dim.AUTO}`` or None.
    """
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    inputs: list[Any] = []
    sizes: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind != InputKind.USER_INPUT:
            continue
        value = nodes[spec.arg.name].meta.get("val")
        if isinstance(value, Tensor):
            inputs.append(_ones_like(value))
            sizes.append({i: Dim.AUTO for i, size in enumerate(value.shape) if not isinstance(size, int)} or None)
        else:
            inputs.append(spec.arg.value if isinstance(spec.arg, ConstantArgument) else value)
            sizes.append(None)
    assert program.call_spec.in_spec is not None
    unflatten = torch.utils._pytree.tree_unflatten
    return unflatten(inputs, program.call_spec.in_spec), unflatten(sizes, program.call_spec.in_spec)


def _ones_like(value: Tensor) -> Tensor:
    """Ones of a traced tensor's shape and order of memory; free sizes are at least 2 (see _two_of_one)."""
    shape = [size if isinstance(size, int) else max(2, size.node.hint or 2) for size in value.shape]
    ones = torch.ones(shape, dtype=value.dtype, device=value.device)
    is_channels_last = value.dim() == 4 and not value.is_contiguous()
    return ones.contiguous(memory_format=torch.channels_last) if is_channels_last else ones
