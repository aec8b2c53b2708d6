"""``subbit convert``, ``subbit compress`` and ``subbit export``: models in, smaller and faster models out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from subbit_infer.cli.outputs import CARRIERS, Out, check_out, write_module, write_program
from subbit_infer.cli.screen import Json, UsageError, note, show, working
from subbit_infer.cli.sources import (
    Inputs,
    Model,
    Source,
    build,
    check_file,
    example_inputs,
    has_subbit_layers,
    is_code,
    read_module,
    read_program,
    suffix_of,
)
from subbit_infer.conversion.report import Report
from subbit_infer.core.atomic import replacing

Fold = Annotated[
    bool,
    typer.Option("--fold", help="Fold BatchNorms, shortcuts, activations and signs into the layers, which is faster."),
]
Verify = Annotated[
    bool | None,
    typer.Option(help="Compare outputs before writing; the default if an input is known.", show_default=False),
]


def convert(
    source: Source, output: Out, inputs: Inputs = None, fold: Fold = False, verify: Verify = None, json: Json = False
) -> None:
    """Turn the sub-bit layers of a model into fast ones and write it: .onnx to .onnx, .pt2 to .pt2, code to any.

    A checkpoint of the published training code (.pt, .pth) is read without unpickling code. So is a .pt2: programs that
    hold pickled objects, compiled code or expressions other than sizes are refused. Still, package.module:callable
    runs that code, and torch itself says of .pt2 files never to load one that is not trusted.
    """
    suffix = suffix_of(source)
    carriers = {".onnx": (".onnx",), ".pt2": (".pt2",)}.get(suffix, CARRIERS)
    if suffix == ".safetensors":
        raise UsageError(f"{source} is converted already; subbit export writes it as .pt2 or .onnx")
    if not is_code(source):
        check_file(source, (".onnx", ".pt2", ".pt", ".pth"))
    check_out(output, source, carriers, traces=suffix not in (".onnx", ".pt2") and not inputs)
    if suffix == ".onnx":
        report = _convert_onnx(Path(source), output, inputs, fold, verify)
    elif suffix in (".pt", ".pth"):
        report = _convert_checkpoint(source, output, inputs, fold, verify)
    else:
        report = _convert_torch(source, output, inputs, fold, verify)
    _show(report, source, output, json)


def compress(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="package.module:callable, or the name of a network.")],
    output: Out,
    tau: Annotated[int, typer.Option(min=1, max=8, help="Bits per index: 2^tau codewords per layer.")] = 5,
    method: Annotated[
        str, typer.Option(help="How codebooks are chosen: frequent, kmeans, vanilla or equal_intervals.")
    ] = "frequent",
    inputs: Inputs = None,
    fold: Fold = False,
    verify: Verify = None,
    json: Json = False,
) -> None:
    """Make a network's weights sub-bit without training, convert it and write it. Check its accuracy afterwards."""
    if not is_code(source):
        raise UsageError(f"MODEL must be package.module:callable or the name of a network, got {source!r}")
    check_out(output, source, traces=not inputs)
    from subbit_infer.conversion.compression import METHODS
    from subbit_infer.conversion.compression import compress as make_subbit

    if method not in METHODS:
        raise UsageError(f"--method must be {' or '.join(METHODS)}, got {method!r}")
    example = example_inputs(inputs)
    _check_fold(fold, source, output, example)
    module = build(source)
    with working("Compressing"):
        compressed, compression = make_subbit(module, tau, method)
    check_any(compression, source)
    converted, report = _converted(compressed, example, fold, verify)
    check_any(report, source)
    write_module(converted, example, output)
    result = {"output": str(output), "bytes": output.stat().st_size}
    result |= {"compress": compression.to_dict(), "convert": report.to_dict()}
    show(result, compression, _written(output), as_json=json)


def export(source: Source, output: Out, model: Model = None, inputs: Inputs = None, json: Json = False) -> None:
    """Write a converted model (.safetensors with --model, or code) as an exported program (.pt2) or ONNX file."""
    check_out(output, source, (".pt2", ".onnx"), traces=not inputs)
    example = example_inputs(inputs)
    module = read_module(source, model)
    if not has_subbit_layers(module):
        raise ValueError(f"{source} has no sub-bit layer; subbit convert writes models whose weights are sub-bit")
    write_module(module, example, output)
    show({"output": str(output), "bytes": output.stat().st_size}, _written(output), as_json=json)


def _convert_onnx(source: Path, out: Path, inputs: list[str] | None, fold: bool, verify: bool | None) -> Report:
    if inputs or fold or verify is not None:
        raise UsageError("--input, --fold and --verify are for models of torch, not for .onnx files")
    from subbit_infer.formats import onnx

    with replacing(out) as temporary:
        with working("Converting"):
            report: Report = onnx.convert(source, temporary)
        check_any(report, str(source))
    return report


def _convert_checkpoint(source: str, out: Path, inputs: list[str] | None, fold: bool, verify: bool | None) -> Report:
    if fold or verify:
        raise UsageError("--fold and --verify are not for checkpoints: their layers are made sub-bit as they are read")
    from subbit_infer.formats import checkpoint

    example = example_inputs(inputs)
    with working(f"Reading {source}"):
        model, report = checkpoint.snn_model(source)
    write_module(model, example, out)
    return report


def _convert_torch(source: str, out: Path, inputs: list[str] | None, fold: bool, verify: bool | None) -> Report:
    """A module or an exported program."""
    example = example_inputs(inputs)
    _check_fold(fold, source, out, example)
    model: Any = build(source) if is_code(source) else read_program(source)
    converted, report = _converted(model, example, fold, verify)
    check_any(report, source)
    if is_code(source):
        write_module(converted, example, out)
    else:
        write_program(converted, out)
    return report


def _check_fold(fold: bool, source: str, out: Path, example: Any) -> None:
    if fold and out.suffix.lower() == ".safetensors":
        raise UsageError(f"--fold makes a graph, which .safetensors cannot hold: write .pt2 or .onnx, not {out}")
    if fold and example is None and is_code(source):
        raise UsageError("--fold needs --input, to trace the model with")


def _converted(model: Any, example: Any, fold: bool, verify: bool | None) -> tuple[Any, Report]:
    """The model converted, and verified where an input is known, if nothing else is asked for."""
    from subbit_infer.conversion.model import convert as convert_model

    is_known = example is not None or getattr(model, "example_inputs", None) is not None
    if verify and not is_known:
        raise UsageError("--verify needs --input")
    verifies = is_known if verify is None else verify
    if not verifies:
        note("Outputs are not compared; --input 1x3x224x224 and the like compares them.")
    with working("Converting"):
        model, report = convert_model(model, example, fold=fold, verify=verifies)
    return model, report


def check_any(report: Report, source: str) -> None:
    """Raises ValueError where nothing was converted."""
    if report.converted:
        return
    why = f" ({report.skipped[0].name}: {report.skipped[0].why})" if report.skipped else ""
    count = len(report.layers)
    raise ValueError(
        f"nothing to convert: none of {count} layer{'s' * (count != 1)} of {source} is sub-bit{why}; "
        "subbit compress makes weights sub-bit"
    )


def _written(out: Path) -> str:
    return f"Wrote {out}, {out.stat().st_size:,} bytes."


def _show(report: Report, source: str, out: Path, as_json: bool) -> None:
    result = {"source": source, "output": str(out), "bytes": out.stat().st_size, **report.to_dict()}
    show(result, report, _written(out), as_json=as_json)
