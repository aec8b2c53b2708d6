"""Models in, models out: the layers of a trained network that are sub-bit become fast ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from subbit_infer.conversion import graph
from subbit_infer.conversion.modules import swap
from subbit_infer.conversion.report import Converted
from subbit_infer.core import cost


class VerificationError(ValueError):
    """A converted model does not give what the model gave."""


def convert(
    model: torch.nn.Module | ExportedProgram,
    example_input: Any = None,
    *,
    in_place: bool = False,
    fold: bool = False,
    verify: bool = False,
    tolerance: float = 1e-4,
) -> Converted:
    """Puts sub-bit layers in the place of the convolutions and linear layers whose weight is sub-bit.

    A weight is sub-bit if it is, in every output channel, a positive number times -1 and +1, and consists of at most
    256 distinct units (3x3 kernels, or vectors of 8 channels of a 1x1 kernel). What counts is the weight that the
    convolution is given, whatever its module computes it from. A convolution of signs becomes one that takes them
    itself.

    Args:
        model: a module, or a program from torch.export.
        example_input: an input of it; a tuple is its positional arguments. A module is run once with it to see what
            its convolutions are given; without, only ``torch.nn.Conv2d`` and ``torch.nn.Linear`` modules are looked at,
            and signs are not seen.
        in_place: whether a module is changed itself, instead of a copy.
        fold: whether BatchNorms, scales, biases, shortcuts, activations and signs around the layers go into them, and
            what stays dense is made quicker. A module then comes back as a graph module, in evaluation mode; rounding
            differs, and with binary activations a sum within rounding of 0 may change its sign.
        verify: whether to run both and compare.
        tolerance: of verify: the greatest difference allowed, relative to the largest magnitude of an output.

    Returns:
        ``model, report``: a model of the same kind that gives the same, and what was done to each layer.

    Raises:
        TypeError: ``model`` is neither, or an option does not go with it.
        ValueError: ``example_input`` is no input of the model, or is needed and missing; torch.export cannot trace a
            module to be folded; a :class:`VerificationError` where the outputs differ.

    Source: paper, section 4.4 (computation sharing).
    """
    if not isinstance(model, torch.nn.Module | ExportedProgram):
        raise TypeError(f"model must be a torch.nn.Module or an ExportedProgram, got {type(model).__name__}")
    is_module = isinstance(model, torch.nn.Module)
    if in_place and (fold or not is_module):
        what = "a model to be folded" if is_module else "an ExportedProgram"
        raise TypeError(f"in_place must be False for {what}: it comes back as another one")
    arguments = _arguments(model, example_input)
    if arguments is None and (verify or (fold and is_module)):
        raise ValueError(f"example_input must be given to {'verify' if verify else 'fold'}, got None")
    expected = _run(model, arguments) if verify and arguments is not None else []
    if isinstance(model, ExportedProgram):
        converted = graph.rewrite_program(model, folds=fold)
    else:
        converted = swap(model, example_input, in_place=in_place)
        if fold and arguments is not None:
            folded = graph.rewrite(graph.capture(converted.model, arguments[0]))
            converted = folded if folded.report.converted else converted
    if verify and arguments is not None:
        _compare(expected, _run(converted.model, arguments), tolerance, _hint(converted, fold))
    return converted


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _arguments(model: torch.nn.Module | ExportedProgram, example_input: Any) -> Arguments | None:
    """Those of a call; a program may have kept some."""
    if example_input is not None:
        return (example_input if isinstance(example_input, tuple) else (example_input,)), {}
    return model.example_inputs if isinstance(model, ExportedProgram) else None


def _run(model: torch.nn.Module | ExportedProgram, arguments: Arguments) -> list[Tensor]:
    """Every tensor of the output."""
    args, kwargs = torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, arguments)  # a model may change its input
    with torch.no_grad():
        if isinstance(model, ExportedProgram):
            output = model.module()(*args, **kwargs)
        else:
            with cost.evaluating(model), torch.random.fork_rng(devices=[]):
                output = model(*args, **kwargs)
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _hint(converted: Converted, folded: bool) -> str:
    """What may be behind a difference that is no mistake."""
    if not folded or all(layer.activation_bits != 1 for layer in converted.report.converted):
        return ""
    return (
        "; folding rounds otherwise, which turns signs of sums close to 0: fold=False or a greater tolerance allows it"
    )


def _compare(expected: list[Tensor], given: list[Tensor], tolerance: float, hint: str) -> None:
    if len(expected) != len(given):
        raise VerificationError(f"the model must give {len(expected)} tensors, gives {len(given)} when converted")
    for number, (old, new) in enumerate(zip(expected, given, strict=True)):
        if old.shape != new.shape:
            raise VerificationError(f"output {number} must have shape {tuple(old.shape)}, has {tuple(new.shape)}")
        difference = _difference(old, new)
        if not difference <= tolerance:
            raise VerificationError(
                f"output {number} must be within {tolerance:g} of the model's, relative to its largest magnitude, "
                f"differs by {difference:.3g}{hint}"
            )


def _difference(old: Tensor, new: Tensor) -> float:
    """The greatest, relative to the largest magnitude; infinite where NaN or infinity are elsewhere than they were."""
    old, new = old.double(), new.double()
    finite = old.isfinite()
    if not torch.equal(old[~finite].nan_to_num(), new[~finite].nan_to_num()) or not bool(new[finite].isfinite().all()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    return float((new - old)[finite].abs().max()) / (float(old[finite].abs().max()) or 1.0)
