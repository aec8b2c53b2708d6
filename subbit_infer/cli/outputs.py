"""What a command writes: a converted model, in the carrier that the suffix names."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from subbit_infer import formats as files
from subbit_infer.cli.screen import UsageError, note, working
from subbit_infer.core.atomic import replacing

CARRIERS = (".safetensors", ".pt2", ".onnx")

Out = Annotated[
    Path,
    typer.Option("-o", "--output", metavar="OUT", help="A .safetensors, .pt2 or .onnx file; replaced if it exists."),
]


def check_out(out: Path, source: str, carriers: Sequence[str] = CARRIERS, *, traces: bool = False) -> None:
    """Checks, before any work, that a file of this kind can be written there.

    Args:
        out: the file.
        source: what the command is given.
        carriers: suffixes that it may have.
        traces: whether a module is to be written without an input to trace it with.

    Raises:
        UsageError: it has another suffix, is the source itself, or an input is needed.
        FileNotFoundError: there is no such directory.
    """
    if out.suffix.lower() not in carriers:
        raise UsageError(f"-o must be a {' or '.join(carriers)} file for {source}, got {out}")
    if out.exists() and Path(source).exists() and os.path.samefile(out, source):
        raise UsageError(f"-o must be another file than the model, got {out} for both")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"no such directory: {out.parent}")
    if traces and out.suffix.lower() != ".safetensors":
        raise UsageError(f"{out} needs --input, as --input 1x3x224x224, to trace the model with")
    if out.suffix.lower() == ".onnx":
        importlib.import_module("subbit_infer.onnx")  # so that what is missing is said now


def write_module(module: nn.Module, example: tuple[Tensor, ...] | None, out: Path) -> None:
    """Writes a module with sub-bit layers; anything but .safetensors needs an input to trace it with.

    Raises:
        ValueError: torch.export cannot trace it.
    """
    carrier = out.suffix.lower()
    if carrier == ".safetensors":
        files.save(module, out)
        return
    assert example is not None
    if carrier == ".pt2":
        with working("Exporting"):
            program = _traced(module, example)
        write_program(program, out)
        return
    from subbit_infer.formats.onnx import export

    with working("Exporting"), replacing(out) as temporary:
        export(module, example, temporary)


def _traced(module: nn.Module, example: tuple[Tensor, ...]) -> ExportedProgram:
    """An exported program for any batch size; where the model takes but one, for the one of the example."""
    with torch.no_grad():
        try:
            program = _traced_for_any_batch(module, example)
        except Exception:  # whatever the user's code does under torch.export
            program = None
        if program is not None:
            return program
        try:
            program = torch.export.export(module, example)
        except Exception as error:
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ValueError(f"torch.export cannot trace {type(module).__name__}: {first}") from error
    note("The batch size is fixed to that of --input: the model takes no other.")
    return program


def _traced_for_any_batch(module: nn.Module, example: tuple[Tensor, ...]) -> ExportedProgram | None:
    """An exported program whose first dimensions may have any size; None where the model fixes one."""
    # torch takes a size of 1 in the example for one that is always 1.
    doubled = tuple(torch.cat([x, x]) if x.shape[0] == 1 else x for x in example)
    program = torch.export.export(module, doubled, dynamic_shapes=tuple({0: Dim.AUTO} for _ in example))
    inputs = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.name in inputs]
    program.example_inputs = (example, {})
    return program if all(isinstance(value.shape[0], torch.SymInt) for value in values) else None


def write_program(program: ExportedProgram, out: Path) -> None:
    """Writes an exported program."""
    with working("Writing"), replacing(out) as temporary:
        content = io.BytesIO()  # given a path, torch would write its name into the file
        torch.export.save(program, content)
        temporary.write_bytes(content.getvalue())
