"""All steps in order, for a graph and for an exported program."""

from __future__ import annotations

import inspect
from dataclasses import replace

import torch
from torch import fx
from torch.export import ExportedProgram

from subbit_infer.conversion.graph.capture import example_of, graph_of
from subbit_infer.conversion.graph.constants import Constants
from subbit_infer.conversion.graph.dense import fold_dense_norms, pool_first, prefer_channels_last, take_pixels_first
from subbit_infer.conversion.graph.find import find
from subbit_infer.conversion.graph.fold import fold
from subbit_infer.conversion.graph.layers import to_layers
from subbit_infer.conversion.graph.pooling import halve_by_maxima
from subbit_infer.conversion.graph.signs import absorb, pack, skip_limits
from subbit_infer.conversion.graph.sites import sites
from subbit_infer.conversion.report import Converted, LayerReport, Report


def rewrite(module: fx.GraphModule, *, folds: bool = True) -> Converted[fx.GraphModule]:
    """Puts sub-bit layers into a graph.

    Args:
        module: of functional ATen operators, from :func:`~subbit_infer.conversion.graph.capture.capture`;
            it is used up.
        folds: whether to fold what surrounds the layers into them, and to keep binary activations packed between them.

    Returns:
        A graph module with SubbitConv2d and SubbitLinear layers, named as the layers they replace; and what was done.
    """
    _drop_assertions(module.graph)
    constants = Constants(module)
    reports = find(module, constants)
    absorb(module, constants)
    module.graph.eliminate_dead_code()  # unread nodes are no readers
    if folds:
        fold(module, constants)
        pack(module, constants)
        skip_limits(module.graph)
        fold_dense_norms(module, constants)
        pool_first(module)
        halve_by_maxima(module)
        take_pixels_first(module)
        prefer_channels_last(module, Constants(module))
    done = {site.name: site.activation_bits for _, site in sites(module.graph)}
    reports = [_with_bits(report, done.get(report.name)) for report in reports]
    return Converted(to_layers(module), Report(tuple(reports)))


def _drop_assertions(graph: fx.Graph) -> None:
    """Removes what only checks that dtypes are as they were when the graph was made: it keeps alive what nobody reads.

    Dtypes inside follow from those of the inputs, which layers check themselves.
    """
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)


def _with_bits(report: LayerReport, bits: int | None) -> LayerReport:
    return report if bits is None else replace(report, activation_bits=bits)


def rewrite_program(program: ExportedProgram, *, folds: bool = True) -> Converted[ExportedProgram]:
    """The same for an exported program: its calls of sub-bit layers are ``subbit_infer::conv2d`` calls.

    Args:
        program: from torch.export; it is left as it was.
        folds: as in :func:`rewrite`.

    Returns:
        A program of the same signature, whose free sizes are free; and what was done.
    """
    module, report = rewrite(graph_of(program), folds=folds)
    if not report.converted:
        return Converted(program, report)
    (args, kwargs), (free_args, free_kwargs) = example_of(program)
    names = list(inspect.signature(module.forward).parameters)
    sizes = dict(zip(names, free_args, strict=False)) | free_kwargs
    with torch.no_grad():
        return Converted(torch.export.export(module, args, kwargs, dynamic_shapes=sizes or None), report)
