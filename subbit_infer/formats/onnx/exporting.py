"""Modules and exported programs to ONNX files, their sub-bit weights packed."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import onnx
import onnxscript  # noqa: F401  (torch.onnx needs it, and says so late)
import torch
from torch import Tensor

from subbit_infer.formats.onnx.functions import DOMAIN
from subbit_infer.formats.onnx.protos import first_line, write
from subbit_infer.formats.onnx.rewrite import add_functions
from subbit_infer.formats.onnx.unpacking import Unpacked


def export(
    module: torch.nn.Module | torch.export.ExportedProgram,
    args: tuple[Any, ...],
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> None:
    """Writes a model with sub-bit layers to an ONNX file that holds their weights packed.

    Every call of ``subbit_infer::conv2d`` becomes a node of the domain ``subbit_infer``, as :func:`convert` makes them,
    and standard operators for the epilogue after the bias. Activations that are packed between layers become floats in
    the file, with the same results. Weights are in that file, too.

    Args:
        module: a module in evaluation mode, or an exported program.
        args: example inputs, from which shapes and dtypes are taken.
        path: the file to write.
        dynamic_batch: whether the first dimension of every tensor among the inputs may have any size, one for all;
            an exported program must have been exported with such a dimension.
        input_names: names of the file's inputs; None for those of torch.
        output_names: names of its outputs.

    Raises:
        TypeError: ``module`` or ``args`` has the wrong type.
        ValueError: the model is in training mode, has no sub-bit layer, cannot be exported, or uses packed activations
            in a way that ONNX does not express: as an input or output of the model, or in other operators than those
            of :mod:`subbit_infer`, slices and transpositions.
        OSError: the file cannot be written.
    """
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple of example inputs, got {type(args).__name__}")
    if dynamic_batch:  # torch would take a size of 1 in the example for a constant
        args = tuple(_two_of(arg) for arg in args)
    packed = _packed_program(module, args, dynamic_batch)
    names = input_names or [name for name in packed.graph_signature.user_inputs if isinstance(name, str)]
    program = _exported(Unpacked(packed.module(check_guards=False)), args, (_dynamic(args, dynamic_batch),))
    try:
        exported = torch.onnx.export(program, input_names=names, output_names=output_names, verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"module does not export to ONNX: {first_line(error.__cause__ or error)}") from error
    assert exported is not None
    model = exported.model_proto
    if not any(node.domain == DOMAIN for node in model.graph.node):
        raise ValueError("module must have a sub-bit layer, it has none; subbit_infer.convert makes them")
    for described in (*model.graph.node, *model.graph.value_info):
        del described.metadata_props[:]  # torch's notes for debugging: 4 % of a ResNet-18's file
    if dynamic_batch:
        _name_batch(model)
    add_functions(model)
    onnx.checker.check_model(model, full_check=True)
    write(model, path)


def _packed_program(
    module: torch.nn.Module | torch.export.ExportedProgram, args: tuple[Any, ...], dynamic_batch: bool
) -> torch.export.ExportedProgram:
    if isinstance(module, torch.export.ExportedProgram):
        return module
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module or an ExportedProgram, got {type(module).__name__}")
    if module.training:
        raise ValueError("module must be in evaluation mode, got one in training mode: call eval()")
    return _exported(module, args, _dynamic(args, dynamic_batch))


def _dynamic(args: tuple[Any, ...], dynamic_batch: bool) -> tuple[Any, ...]:
    """What torch.export is told about the sizes of each input."""
    batch = torch.export.Dim("batch")
    return tuple({0: batch} if isinstance(arg, Tensor) and arg.dim() and dynamic_batch else None for arg in args)


def _exported(
    module: torch.nn.Module, args: tuple[Any, ...], dynamic_shapes: tuple[Any, ...]
) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(module, args, dynamic_shapes=dynamic_shapes)
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, AssertionError) as error:
        raise ValueError(f"module does not export: {first_line(error)}") from error


def _name_batch(model: onnx.ModelProto) -> None:
    """Gives the dynamic size the name "batch"; torch numbers it."""
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    symbol = next(v.type.tensor_type.shape.dim[0].dim_param for v in model.graph.input if v.type.tensor_type.shape.dim)
    for value in values:
        for size in value.type.tensor_type.shape.dim:
            if size.HasField("dim_param"):
                size.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", "batch", size.dim_param)


def _two_of(arg: Any) -> Any:
    return torch.cat([arg, arg]) if isinstance(arg, Tensor) and arg.dim() and arg.shape[0] == 1 else arg
