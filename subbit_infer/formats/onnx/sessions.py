"""ONNX Runtime sessions whose nodes of our domain call our kernels, as Python operators of onnxruntime-extensions."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import helper

from subbit_infer.formats.onnx.functions import DOMAIN
from subbit_infer.formats.onnx.graphs import Graph
from subbit_infer.formats.onnx.layers import layer_nodes, layer_of
from subbit_infer.formats.onnx.program import run_layer, runtime_session
from subbit_infer.formats.onnx.protos import read

_CONTRIB = "ai.onnx.contrib"  # the only domain that Python operators can have
_OPERATOR = "SubbitLayer"
_layers: dict[int, torch.nn.Module] = {}  # of sessions that live
_numbers = count()
_with_library = weakref.WeakSet[onnxruntime.SessionOptions]()


def session(
    path: str | os.PathLike[str],
    providers: Sequence[str] | None = None,
    sess_options: onnxruntime.SessionOptions | None = None,
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session for a file that ``convert`` or ``export`` wrote, in which our kernels run.

    Needs the package onnxruntime-extensions. It returns every output of a Python operator as a list of Python numbers,
    at a measured 70 ns each, which usually costs more than our kernels save: prefer
    :func:`subbit_infer.onnx.load`, unless you need an ``InferenceSession``.

    Args:
        path: the file.
        providers: of ONNX Runtime; None for the CPU's.
        sess_options: of the session; the library of onnxruntime-extensions is registered in them, and must not be
            registered by others.

    Raises:
        ImportError: onnxruntime-extensions is not installed.
        FileNotFoundError: there is no such file.
        ValueError: it is not a valid ONNX file, has no sub-bit layer, or a broken one.
    """
    library = _register()
    model = read(path)
    graph = Graph(model)
    nodes = layer_nodes(graph)
    layers = [layer_of(graph, node) for node in nodes]
    weights = [name for node in nodes for name in node.input[1:]]
    numbers = [next(_numbers) for _ in layers]
    for node, number in zip(nodes, numbers, strict=True):
        node.CopyFrom(
            helper.make_node(_OPERATOR, node.input[:1], node.output, node.name, domain=_CONTRIB, layer=number)
        )
    del model.functions[:]
    for imported in model.opset_import:
        if imported.domain == DOMAIN:
            imported.domain = _CONTRIB
    graph.look_up()
    graph.remove_unused(weights)
    options = onnxruntime.SessionOptions() if sess_options is None else sess_options
    if options not in _with_library:  # registering it twice is an error
        options.register_custom_ops_library(library)
        _with_library.add(options)
    given = ["CPUExecutionProvider"] if providers is None else list(providers)
    _layers.update(zip(numbers, layers, strict=True))
    try:
        made = runtime_session(model, options, given, path)
    except BaseException:
        _forget(numbers)
        raise
    weakref.finalize(made, _forget, numbers)
    return made


def _forget(numbers: list[int]) -> None:
    for number in numbers:
        del _layers[number]


def _register() -> str:
    """Makes our operator known to onnxruntime-extensions, once; gives the path of its library."""
    try:
        from onnxruntime_extensions import PyCustomOpDef, get_library_path, onnx_op  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("session needs onnxruntime-extensions: pip install subbit-infer[onnx]") from error
    global _is_registered
    if not _is_registered:
        onnx_op(
            op_type=_OPERATOR,
            inputs=[PyCustomOpDef.dt_float],
            outputs=[PyCustomOpDef.dt_float],
            attrs={"layer": PyCustomOpDef.dt_int64},
        )(_run)
        _is_registered = True
    return str(get_library_path())


_is_registered = False


def _run(x: np.ndarray[Any, Any], layer: int) -> np.ndarray[Any, Any]:
    return run_layer(_layers[layer], x)
