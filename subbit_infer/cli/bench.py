"""``subbit bench``: a model against its conversion."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.export import ExportedProgram

from subbit_infer.backends import native
from subbit_infer.cli.convert import check_any
from subbit_infer.cli.info import onnx_info
from subbit_infer.cli.screen import Json, UsageError, show, working
from subbit_infer.cli.sources import (
    Device,
    Inputs,
    Model,
    Source,
    check_file,
    device_of,
    example_inputs,
    has_subbit_layers,
    read_module,
    read_program,
    suffix_of,
)

_WARM_UP = 3
_TOLERANCE = 1e-4  # of ONNX models, relative to the largest output, as subbit_infer.convert has it

Run = Callable[[], Any]


def bench(
    source: Source,
    model: Model = None,
    inputs: Inputs = None,
    fold: Annotated[bool, typer.Option("--fold", help="Fold the operations around the layers into them.")] = False,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads for either.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 20,
    device: Device = "cpu",
    half: Annotated[bool, typer.Option("--half", help="Both in float16 and channels_last.")] = False,
    json: Json = False,
) -> None:
    """Time a model before and after conversion, by turns, once their outputs have been found equal; print medians.

    A model that is already converted is timed alone.
    """
    example, target = example_inputs(inputs), device_of(device)
    if suffix_of(source) in (".onnx", ".pt2") and (half or target.type != "cpu"):
        raise UsageError(f"--device and --half are not for {source}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        if suffix_of(source) == ".onnx":
            if fold or model is not None:
                raise UsageError(f"--fold and --model are not for {source}")
            runs = _onnx_runs(check_file(source), example, threads)
        else:
            runs = _torch_runs(source, model, example, fold, _Place(target, half))
        with torch.inference_mode():
            medians = _medians(runs, rounds, target)
    finally:
        torch.set_num_threads(before)
    result: dict[str, Any] = {
        "source": source,
        "threads": threads,
        "rounds": rounds,
        "level": native.active_level(),
        "device": device,
        "half": half,
        "milliseconds": medians,
    }
    if len(medians) == 2:
        result["speedup"] = medians["original"] / medians["converted"]
    show(result, _text(result), as_json=json)


def _text(result: Mapping[str, Any]) -> str:
    threads = result["threads"]
    where = f"{threads} thread{'s' * (threads != 1)}" if result["device"] == "cpu" else result["device"]
    where += ", float16" * result["half"]
    lines = [f"{result['source']}: medians of {result['rounds']}, {where}"]
    lines += [f"{name:9}  {milliseconds:9.3f} ms" for name, milliseconds in result["milliseconds"].items()]
    if "speedup" in result:
        lines.append(f"speed-up   {result['speedup']:9.2f} x")
    return "\n".join(lines)


def _medians(runs: Mapping[str, Run], rounds: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each. They take turns, so that all see the machine in the same state.

    A turn is one run that is not timed, so that the caches hold this one's data and not the last one's, and one timed.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    with working("Measuring", _WARM_UP + rounds) as step:
        for _ in range(_WARM_UP + rounds):
            for name, run in runs.items():
                run()
                _wait_for(device)
                start = time.perf_counter()
                run()
                _wait_for(device)
                times[name].append((time.perf_counter() - start) * 1e3)
            step()
    return {name: statistics.median(taken[_WARM_UP:]) for name, taken in times.items()}


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Place(NamedTuple):
    """Where and in which numbers a model is timed."""

    device: torch.device
    half: bool

    def of(self, model: nn.Module, example: tuple[Any, ...]) -> Run:
        """A run of the module there."""
        module = model.to(self.device)
        inputs = [x.to(self.device) for x in example]
        if self.half:
            module = module.half()
            inputs = [_halved(x) for x in inputs]
        return lambda: module(*inputs)


def _halved(x: Tensor) -> Tensor:
    return x.half().contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)


def _torch_runs(source: str, model: str | None, example: Any, fold: bool, place: _Place) -> dict[str, Run]:
    """What to time: the model and its conversion, whose outputs convert compares; or a converted model alone."""
    original: Any
    if suffix_of(source) == ".pt2":
        if model is not None:
            raise UsageError(f"{source} takes no --model")
        original = read_program(source)
        is_converted = any("subbit_infer" in str(node.target) for node in original.graph.nodes)
        given = original.example_inputs
        example = given[0] if example is None and given is not None else example
    else:
        original = read_module(source, model)
        is_converted = has_subbit_layers(original)
    if example is None:
        raise UsageError("bench needs --input, as --input 1x3x224x224")
    if is_converted:
        if fold:
            raise UsageError(f"--fold is for models that are not converted yet, and {source} is")
        return {"converted": place.of(_module_of(original), example)}
    from subbit_infer.conversion.model import convert

    with working("Converting and comparing"):
        converted, report = convert(original, example, fold=fold, verify=True)
    check_any(report, source)
    models = {"original": original, "converted": converted}
    return {name: place.of(_module_of(each), example) for name, each in models.items()}


def _module_of(model: nn.Module | ExportedProgram) -> nn.Module:
    return model.module() if isinstance(model, ExportedProgram) else model.eval()


def _onnx_runs(path: Path, example: tuple[Tensor, ...] | None, threads: int) -> dict[str, Run]:
    """The same for an ONNX file: ONNX Runtime, and our layers between its parts."""
    from subbit_infer.formats import onnx

    if onnx_info(path)[0]["subbit_nodes"]:
        alone = onnx.load(path)
        given = _feed(alone.get_inputs(), example)
        return {"converted": lambda: alone.run(None, given)}
    original = _session(path, threads)
    feed = _feed(original.get_inputs(), example)
    with tempfile.TemporaryDirectory() as folder, working("Converting and comparing"):
        target = Path(folder) / path.name
        check_any(onnx.convert(path, target), str(path))
        converted = onnx.load(target)
        for old, new in zip(original.run(None, feed), converted.run(None, feed), strict=True):
            if not np.abs(new - old).max() <= _TOLERANCE * np.abs(old).max():
                raise ValueError(f"the converted model must give the same, differs by {np.abs(new - old).max():.3g}")
    return {"original": lambda: original.run(None, feed), "converted": lambda: converted.run(None, feed)}


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of its own types, which share no base class
        raise ValueError(f"ONNX Runtime cannot run {path}: {error}") from error


def _feed(wanted: Sequence[Any], example: tuple[Tensor, ...] | None) -> dict[str, Any]:
    """The inputs by name: those given, or random ones of the shapes that the model declares."""
    if example is None:
        shapes = [one.shape for one in wanted]
        if not all(isinstance(size, int) for shape in shapes for size in shape):
            raise UsageError(f"bench needs --input for sizes that the model leaves open: {shapes}")
        example = example_inputs(["x".join(map(str, shape)) for shape in shapes]) or ()
    if len(example) != len(wanted):
        raise UsageError(f"--input must be given once for each of {len(wanted)} inputs, got {len(example)}")
    return {one.name: x.numpy() for one, x in zip(wanted, example, strict=True)}
