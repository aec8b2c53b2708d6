"""Replaces sub-bit layers of a trained model by fast ones: in a module, or in a program from torch.export."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, overload

import torch
from torch.export import ExportedProgram

from subbit_infer.conversion import graph
from subbit_infer.conversion.modules import swap
from subbit_infer.conversion.report import Converted, LayerReport, Report
from subbit_infer.conversion.verification import Arguments, VerificationError, call_arguments, compare, hint, run

__all__ = ["VerificationError", "convert"]


@overload
def convert(
    model: ExportedProgram,
    example_input: Any = None,
    *,
    in_place: Literal[False] = False,
    fold: bool = False,
    verify: bool = False,
    tolerance: float = 1e-4,
) -> Converted[ExportedProgram]: ...


@overload
def convert(
    model: torch.nn.Module,
    example_input: Any = None,
    *,
    in_place: bool = False,
    fold: Literal[False] = False,
    verify: bool = False,
    tolerance: float = 1e-4,
) -> Converted[torch.nn.Module]: ...


@overload  # to be folded, a module is traced
def convert(
    model: torch.nn.Module,
    example_input: Any,
    *,
    in_place: Literal[False] = False,
    fold: bool,
    verify: bool = False,
    tolerance: float = 1e-4,
) -> Converted[torch.nn.Module]: ...


def convert(
    model: torch.nn.Module | ExportedProgram,
    example_input: Any = None,
    *,
    in_place: bool = False,
    fold: bool = False,
    verify: bool = False,
    tolerance: float = 1e-4,
) -> Converted[Any]:
    """Replaces the convolutions and linear layers whose weight is sub-bit by sub-bit layers.

    A weight is sub-bit if it is, in every output channel, a positive number times -1 and +1, and consists of at most
    256 distinct units (3x3 kernels, or vectors of 8 channels of a 1x1 kernel). This is asked of the weight that the
    convolution is called with, however its module computes it. A sign before a convolution is absorbed into it
    (binary activations).

    Args:
        model: a module, or a program from torch.export.
        example_input: an input of the model; a tuple is its positional arguments. A module is run once with it to
            observe the inputs of its convolutions; without it, only ``torch.nn.Conv2d`` and ``torch.nn.Linear`` modules
            are examined, and binary activations are not detected.
        in_place: whether to change the module itself instead of a copy.
        fold: whether to fold BatchNorms, scales, biases, shortcuts, activations and signs around the layers into them,
            and to make what stays dense faster. A module then returns as a graph module, in evaluation mode, if it has
            sub-bit layers; rounding changes, which with binary activations can flip signs of sums close to 0.
        verify: whether to run both models and compare their outputs.
        tolerance: for ``verify``: the largest difference allowed, relative to the largest magnitude of an output.

    Returns:
        ``model, report``: a model of the same kind with the same outputs, and what was done to each layer.

    Raises:
        TypeError: ``model`` is neither, or an option does not apply to it.
        ValueError: ``example_input`` is not an input of the model, or is needed and missing; torch.export cannot trace
            a module to be folded; a :class:`VerificationError` if the outputs differ.

    Source: paper, section 4.4 (computation sharing).
    """
    if not isinstance(model, torch.nn.Module | ExportedProgram):
        raise TypeError(f"model must be a torch.nn.Module or an ExportedProgram, got {type(model).__name__}")
    is_module = isinstance(model, torch.nn.Module)
    if in_place and (fold or not is_module):
        what = "a model to be folded" if is_module else "an ExportedProgram"
        raise TypeError(f"in_place must be False for {what}: it comes back as another one")
    arguments = call_arguments(model, example_input)
    if arguments is None and (verify or (fold and is_module)):
        raise ValueError(f"example_input must be given to {'verify' if verify else 'fold'}, got None")
    expected = run(model, arguments) if verify and arguments is not None else []
    # Not inference tensors, even if called so: those do not count changes, and layers compare them at every call.
    with torch.inference_mode(False), torch.no_grad():
        converted = _converted(model, example_input, arguments, in_place=in_place, fold=fold)
    if verify and arguments is not None:
        compare(expected, run(converted.model, arguments), tolerance, hint(converted.report, fold))
    return converted


def _converted(
    model: torch.nn.Module | ExportedProgram,
    example_input: Any,
    arguments: Arguments | None,
    *,
    in_place: bool,
    fold: bool,
) -> Converted[Any]:
    if isinstance(model, ExportedProgram):
        return graph.rewrite_program(model, folds=fold)
    replaced = swap(model, example_input, in_place=in_place)
    if not fold or arguments is None:
        return replaced
    folded = graph.rewrite(graph.capture(replaced.model, arguments[0]))
    if not folded.report.converted:
        return replaced
    return Converted(folded.model, _with_reasons(folded.report, replaced.report, model))


def _with_reasons(folded: Report, replaced: Report, model: torch.nn.Module) -> Report:
    """The report of a folded graph, with what module replacement said of the same layers and of those never called."""
    before = {layer.name: layer for layer in replaced.layers}
    layers = [_with_reason(layer, before.pop(layer.name, layer)) for layer in folded.layers]
    paths = {path for path, module in model.named_modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)}
    unseen = [layer for layer in before.values() if layer.name in paths and not layer.is_converted]
    return Report((*layers, *unseen), (*replaced.notes, *folded.notes))


def _with_reason(layer: LayerReport, before: LayerReport) -> LayerReport:
    """A layer with the remark, or the reason, of module replacement; a reason that no longer holds is left out."""
    if layer.is_converted != before.is_converted:
        return layer
    reasons = dict.fromkeys(filter(None, (layer.why, before.why)))
    return replace(layer, why="; ".join(reasons))
