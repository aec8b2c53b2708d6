"""``subbit info``: what a file holds, without running it."""

from __future__ import annotations

import json as jsons
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from subbit_infer import formats as files
from subbit_infer.cli.exported import program_parts, read_parts
from subbit_infer.cli.screen import Json, show, working
from subbit_infer.cli.sources import check_file
from subbit_infer.core.tables import Tabular

Described = tuple[dict[str, Any], list[Tabular | str]]
"""What a file holds: as data for JSON, and as reports to print one below the other."""

_OURS = "torch.ops.subbit_infer."
_DENSE = ("torch.ops.aten.conv2d.", "torch.ops.aten.convolution.", "torch.ops.aten.linear.", "torch.ops.aten.addmm.")


def info(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A .safetensors, .onnx, .pt2, .pt or .pth file.")],
    json: Json = False,
) -> None:
    """Show what a file holds: sub-bit layers, their sizes against the formula, and what is still dense."""
    path = check_file(file)
    with working(f"Reading {file}"):
        result, reports = _READERS[path.suffix.lower()](path)
    show({"file": file, **result}, *reports, as_json=json)


def _safetensors(path: Path) -> Described:
    found = files.inspect(path)
    return found.to_dict(), [found]


def _exported(path: Path) -> Described:
    parts = read_parts(path)
    targets: Counter[str] = Counter()
    for name in program_parts(parts):
        targets.update(_targets(jsons.loads(parts[name])))
    ours = {target.removeprefix(_OURS): n for target, n in targets.items() if target.startswith(_OURS)}
    dense = {target.removeprefix("torch.ops."): n for target, n in targets.items() if target.startswith(_DENSE)}
    tensors = sum(len(content) for name, content in parts.items() if "/data/weights/" in name or "/constants/" in name)
    result = {
        "kind": "exported program",
        "calls": sum(targets.values()),
        "subbit_calls": ours,
        "dense_calls": dense,
        "tensor_bytes": tensors,
        "total_bytes": path.stat().st_size,
    }
    return result, [
        f"exported program: {result['calls']} calls",
        f"sub-bit: {_counts(ours)}",
        f"dense: {_counts(dense)}",
        f"Tensors {tensors:,} bytes; the file {result['total_bytes']:,}.",
    ]


def _targets(value: Any) -> list[str]:
    """The target of every node of a graph, including inner graphs."""
    if isinstance(value, dict):
        found = [value["target"]] if isinstance(value.get("target"), str) and "inputs" in value else []
        return [*found, *(target for item in value.values() for target in _targets(item))]
    return [target for item in value for target in _targets(item)] if isinstance(value, list) else []


def _counts(calls: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(calls.items())) or "none"


def onnx_info(path: Path) -> Described:
    """What an ONNX file holds, as data and as reports."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"reading {path} needs the package onnx: pip install onnx") from error
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own
        raise ValueError(f"{path} is not an ONNX file, or is cut off") from error
    nodes = Counter((node.domain, node.op_type) for node in model.graph.node)
    ours = {op: count for (domain, op), count in nodes.items() if "subbit" in domain}
    dense = {op: count for (_, op), count in nodes.items() if op in ("Conv", "Gemm", "MatMul")}
    if not model.graph.node:
        raise ValueError(f"{path} is not an ONNX file, or is empty: it holds no graph")
    result: dict[str, Any] = {
        "kind": "onnx",
        "ir_version": model.ir_version,
        "opsets": {opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        "nodes": sum(nodes.values()),
        "subbit_nodes": ours,
        "dense_nodes": dense,
        "total_bytes": path.stat().st_size,
    }
    opsets = ", ".join(f"{opset.domain or 'ai.onnx'} {opset.version}" for opset in model.opset_import)
    return result, [
        f"ONNX model, opsets {opsets}: {result['nodes']} nodes",
        f"sub-bit: {_counts(ours)}",
        f"dense: {_counts(dense)}",
        f"The file {result['total_bytes']:,} bytes.",
    ]


def _checkpoint(path: Path) -> Described:
    from subbit_infer.formats import checkpoint

    found = checkpoint.load_snn(path)
    other = sum(tensor.nbytes for tensor in found.state.values())
    result = {"kind": "checkpoint", **found.report.to_dict(), "other_bytes": other, "total_bytes": path.stat().st_size}
    return result, ["checkpoint of the published training code", found.report]


_READERS: dict[str, Callable[[Path], Described]] = {
    ".safetensors": _safetensors,
    ".pt2": _exported,
    ".onnx": onnx_info,
    ".pt": _checkpoint,
    ".pth": _checkpoint,
}
