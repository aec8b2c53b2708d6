"""Folds the operations after a site into its epilogue: ``act(scale * sums + bias + residual) + shift``."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from subbit_infer.conversion.graph.constants import Constants, exact
from subbit_infer.conversion.graph.find import affine_of, arguments
from subbit_infer.conversion.graph.pooling import move_before_pool
from subbit_infer.conversion.graph.sites import Site, dtype_of, put, shape_of, sites

aten = torch.ops.aten

Fold = Callable[[fx.Node, fx.Node, Site, Constants], bool]
"""Takes a site's node, its only user, the site and constants; changes the site and says whether the user is in it."""


def fold(module: fx.GraphModule, constants: Constants) -> None:
    """Folds what follows each site into it, operation by operation, until one does not fit.

    Sums of scales and biases are made in float64 and rounded once.
    """
    for node, site in sites(module.graph):
        while True:
            if (user := _next(node, site, constants)) is not None:
                node = _put_after(module.graph, node, user, site)
            elif not move_before_pool(module.graph, node, site, constants):
                break


def _next(node: fx.Node, site: Site, constants: Constants) -> fx.Node | None:
    """The only user of a site, if it has just been folded; the site is changed then."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    fold_into = _FOLDS.get(user.target)
    if fold_into is None or not fold_into(node, user, site, constants):
        return None
    return user


def _put_after(graph: fx.Graph, node: fx.Node, user: fx.Node, site: Site) -> fx.Node:
    """Moves a site to where its folded user was, since a residual may only be known there."""
    residual = user.meta.pop("residual", None)
    args = (node.args[0], residual) if residual is not None else node.args
    if user.target in _NORMS_OF_THREE:  # it gives three tensors, of which the first is used
        user = next(iter(user.users))
    new = put(graph, user, args, site)
    for old in (*(n for n in node.users), node):
        if not old.users:
            graph.erase_node(old)
    return new


def _norm(node: fx.Node, user: fx.Node, site: Site, constants: Constants) -> bool:
    """A BatchNorm with running statistics."""
    if user.args[0] is not node or not site.is_linear_so_far or len(node.args) > 1:
        return False
    if user.target in _NORMS_OF_THREE and not _is_only_first_used(user):
        return False
    if not shape_of(node) or len(shape_of(node)) != site.dimensions_after_channels + 2:
        return False  # channels are the second dimension of what it sees
    affine = affine_of(user, constants)
    if affine is None:
        return False
    gain, offset = affine
    _scale_by(site, gain)
    _add(site, offset)
    return True


def _is_only_first_used(user: fx.Node) -> bool:
    return len(user.users) == 1 and all(u.target is operator.getitem and u.args[1] == 0 for u in user.users)


def _multiply(node: fx.Node, user: fx.Node, site: Site, constants: Constants) -> bool:
    """A factor per channel."""
    first, second = user.args[:2]
    other = second if first is node else first
    if other is node or not site.is_linear_so_far or len(node.args) > 1 or not _keeps(node, user):
        return False
    factor = constants.of_channels(other, site.channels, site.dimensions_after_channels)
    if factor is None:
        return False
    _scale_by(site, factor)
    return True


def _divide(node: fx.Node, user: fx.Node, site: Site, constants: Constants) -> bool:
    first, second = user.args[:2]
    if first is not node or not site.is_linear_so_far or len(node.args) > 1 or not _keeps(node, user):
        return False
    divisor = constants.of_channels(second, site.channels, site.dimensions_after_channels)
    if divisor is None or bool((divisor == 0).any()):
        return False
    _scale_by(site, 1 / divisor)
    return True


def _add_or_residual(node: fx.Node, user: fx.Node, site: Site, constants: Constants) -> bool:
    """A number per channel, or a tensor of the output's shape."""
    first, second = user.args[:2]
    other = second if first is node else first
    if other is node or user.kwargs.get("alpha", 1) != 1 or not _keeps(node, user):
        return False
    vector = constants.of_channels(other, site.channels, site.dimensions_after_channels)
    if vector is not None:
        _add(site, vector)
        return True
    if not isinstance(other, fx.Node) or not site.is_linear_so_far or len(node.args) > 1:
        return False
    if dtype_of(other) != dtype_of(node) or not _is_same_shape(other, node):
        return False
    user.meta["residual"] = other
    return True


def _subtract(node: fx.Node, user: fx.Node, site: Site, constants: Constants) -> bool:
    first, second = user.args[:2]
    if first is not node or user.kwargs.get("alpha", 1) != 1 or not _keeps(node, user):
        return False
    vector = constants.of_channels(second, site.channels, site.dimensions_after_channels)
    if vector is None:
        return False
    _add(site, -vector)
    return True


def _activation(node: fx.Node, user: fx.Node, site: Site, constants: Constants) -> bool:
    """relu, hardtanh between -1 and 1, or prelu, whatever it is called."""
    a = arguments(user)
    if user.args[0] is not node or not site.is_linear_so_far or not _keeps(node, user):
        return False
    slope = None
    if user.target in (aten.prelu.default, aten._prelu_kernel.default, aten.leaky_relu.default):
        given = a.get("negative_slope", a.get("weight"))
        weight = constants.value(given) if constants.is_constant(given) else None
        numbers = exact(weight).flatten() if isinstance(weight, Tensor) else weight
        if isinstance(numbers, int | float):
            numbers = torch.tensor([float(numbers)], dtype=torch.float64)
        if numbers is None or len(numbers) not in (1, site.channels):
            return False
        name, slope = "prelu", numbers.expand(site.channels).contiguous()
    else:
        found = {(0, None): "relu", (-1, 1): "hardtanh"}.get(_limits(user.target, a))
        if found is None:
            return False
        name = found
    site.activation, site.slope = name, slope
    return True


def _keeps(node: fx.Node, user: fx.Node) -> bool:
    """Whether a user gives what has the shape and dtype of the node."""
    return dtype_of(user) == dtype_of(node) and _is_same_shape(user, node)


def _is_same_shape(a: fx.Node, b: fx.Node) -> bool:
    """Whether shapes were the same when the graph was made.

    Symbols may be other expressions of what is equal for every input that the graph takes: a strided convolution and
    a pooling halve a size in their own ways. Where they were not, a layer refuses its residual when it runs.
    """
    first, second = shape_of(a), shape_of(b)
    return bool(first) and [*map(_size, first)] == [*map(_size, second)]


def _size(size: int | torch.SymInt) -> int | str:
    if isinstance(size, int):
        return size
    return str(size) if size.node.hint is None else int(size.node.hint)


def _scale_by(site: Site, factor: Tensor) -> None:
    site.scale = factor if site.scale is None else site.scale * factor
    site.bias = None if site.bias is None else site.bias * factor


def _add(site: Site, vector: Tensor) -> None:
    """After the activation it is the shift, before it part of the bias."""
    if site.is_linear_so_far:
        site.bias = vector if site.bias is None else site.bias + vector
    else:
        site.shift = vector if site.shift is None else site.shift + vector


_NORMS_OF_THREE = (aten._native_batch_norm_legit_no_training.default,)

_FOLDS: dict[object, Fold] = {
    aten.batch_norm.default: _norm,
    aten._native_batch_norm_legit_no_training.default: _norm,
    aten.mul.Tensor: _multiply,
    aten.div.Tensor: _divide,
    aten.add.Tensor: _add_or_residual,
    aten.sub.Tensor: _subtract,
    aten.relu.default: _activation,
    aten.hardtanh.default: _activation,
    aten.clamp.default: _activation,
    aten.clamp_min.default: _activation,
    aten.prelu.default: _activation,
    aten._prelu_kernel.default: _activation,
    aten.leaky_relu.default: _activation,
}


def _limits(target: object, a: dict[str, Any]) -> tuple[Any, Any]:
    """The least and the greatest that an activation gives."""
    if target is aten.relu.default:
        return 0, None
    return a.get("min_val", a.get("min")), a.get("max_val", a.get("max"))
