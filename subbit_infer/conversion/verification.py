"""Compares the outputs of a converted model with those of the original."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from subbit_infer.conversion.report import Report
from subbit_infer.core import cost

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional arguments and keyword arguments of a call."""


class VerificationError(ValueError):
    """A converted model does not give the outputs of the original."""


def call_arguments(model: torch.nn.Module | ExportedProgram, example_input: Any) -> Arguments | None:
    """The arguments of a call: those given, else those that a program was exported with."""
    if example_input is not None:
        return (example_input if isinstance(example_input, tuple) else (example_input,)), {}
    return model.example_inputs if isinstance(model, ExportedProgram) else None


def run(model: torch.nn.Module | ExportedProgram, arguments: Arguments) -> list[Tensor]:
    """The output tensors of a model in evaluation mode, in order."""
    args, kwargs = torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, arguments)  # a model may change its input
    with torch.no_grad():
        if isinstance(model, ExportedProgram):
            output = model.module()(*args, **kwargs)
        else:
            with cost.evaluating(model), torch.random.fork_rng(devices=[]):
                output = model(*args, **kwargs)
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def compare(expected: list[Tensor], given: list[Tensor], tolerance: float, hint: str) -> None:
    """Checks that outputs are those of the original.

    Args:
        expected: the output tensors of the original.
        given: those of the converted model.
        tolerance: the largest difference allowed, relative to the largest magnitude of an output.
        hint: what the message of an error about values ends with.

    Raises:
        VerificationError: their number, a shape or a value differs.
    """
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


def hint(report: Report, folded: bool) -> str:
    """What explains a difference that is not an error."""
    if not folded or all(layer.activation_bits != 1 for layer in report.converted):
        return ""
    return "; folding changes rounding, which can flip signs of sums close to 0: pass fold=False or a larger tolerance"
