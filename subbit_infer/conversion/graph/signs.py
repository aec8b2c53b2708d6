"""Absorbs signs into the sites after them, and keeps binary activations packed between sites."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from subbit_infer.conversion.graph.constants import Constants, plain
from subbit_infer.conversion.graph.find import arguments
from subbit_infer.conversion.graph.pooling import can_stay_packed, is_max_pool, pack_pool
from subbit_infer.conversion.graph.sites import Site, shape_of, site_of, sites

aten = torch.ops.aten

_LIMITS = (aten.hardtanh.default, aten.clamp.default)


def absorb(module: fx.GraphModule, constants: Constants) -> None:
    """Absorbs the sign before a site into it."""
    for node, site in sites(module.graph):
        x = node.args[0]
        if site.activation_bits == 1:
            continue  # it was a layer with binary activations, and perhaps its own sign of 0
        source = _source_of_sign(x)
        if source is not None:
            node.args = (source, *node.args[1:])
            site.activation_bits = 1
        elif _is_plus_or_minus_one(x, constants):
            site.activation_bits = 1


def _source_of_sign(node: Any) -> fx.Node | None:
    """What a node is the sign of.

    Training code writes a sign with the gradient of another function t as ``(sign(x) - t(x)) + t(x)``, or with both in
    the other order.
    """
    node = plain(node)
    if not isinstance(node, fx.Node):
        return None
    if node.target is aten.sign.default:
        return node.args[0]  # type: ignore[return-value]
    if node.target is aten.add.Tensor and node.kwargs.get("alpha", 1) == 1:
        for difference, added in (node.args[:2], node.args[1::-1]):
            difference = plain(difference)
            if not isinstance(difference, fx.Node) or difference.target is not aten.sub.Tensor:
                continue
            first, taken = difference.args[:2]
            if difference.kwargs.get("alpha", 1) == 1 and plain(taken) is plain(added):
                return _source_of_sign(first)
    return None


def _is_plus_or_minus_one(node: Any, constants: Constants) -> bool:
    """Whether a node chooses between constants of -1, 0 and +1: the sign of that is itself."""
    node = plain(node)
    if not isinstance(node, fx.Node) or node.target not in (aten.where.self, aten.where.ScalarSelf):
        return False
    return all(constants.is_constant(v) and _is_sign(constants.value(v)) for v in node.args[1:3])


def _is_sign(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() > 0 and bool(((value == 0) | (value.abs() == 1)).all())
    return value in (-1, 0, 1)


def skip_limits(graph: fx.Graph) -> None:
    """Drops limits on both sides of 0 of what only sites with binary activations read: they change no sign."""
    for node in list(graph.nodes):
        if node.target not in _LIMITS or not node.users:
            continue
        a = arguments(node)
        least, most = a.get("min_val", a.get("min")), a.get("max_val", a.get("max"))
        if not all(limit is None or isinstance(limit, int | float) for limit in (least, most)):
            continue  # a number of the input
        is_around_0 = (least is None or least < 0) and (most is None or most > 0)
        if is_around_0 and all(_takes_signs_of(user, node) and node not in user.args[1:] for user in node.users):
            node.replace_all_uses_with(node.args[0], propagate_meta=False)
            graph.erase_node(node)


def pack(module: fx.GraphModule, constants: Constants) -> None:
    """Packs the output of a site before sites with binary activations; floats stay only where others read them."""
    for node, site in sites(module.graph):
        if site.geometry is None:
            continue
        readers = _readers_of_signs(node, site, constants)
        pool = next(iter(node.users), None)
        if readers:
            _pack(module.graph, node, site, readers)
        elif pool is not None and len(node.users) == 1 and is_max_pool(pool) and can_stay_packed(pool):
            _pack_through(module, site, pool)


def _pack_through(module: fx.GraphModule, site: Site, pool: fx.Node) -> None:
    """Packs the output of a site before a max-pooling that only sites with binary activations read.

    The sign of a maximum is the maximum of the signs.
    """
    if not pool.users or not all(_takes_signs_of(user, pool) for user in pool.users):
        return
    zeros = {user.meta["site"].sign_zero for user in pool.users}
    if len(zeros) != 1:
        return
    packed = pack_pool(module, pool)
    site.output, site.pack_sign_zero = "packed", zeros.pop()
    for reader in packed.users:
        reader.meta["site"].sign_zero = 0  # packed signs have none of their own


def _readers_of_signs(node: fx.Node, site: Site, constants: Constants) -> list[tuple[fx.Node, Tensor | None]]:
    """Sites that take signs of the node, or of it plus a number per channel: those of one such sum, the first one's."""
    found: list[tuple[fx.Node, fx.Node | None, Tensor | None]] = []
    for user in node.users:
        if _takes_signs_of(user, node):
            found.append((user, None, None))
        elif user.target is aten.add.Tensor and user.kwargs.get("alpha", 1) == 1:
            other = user.args[1] if user.args[0] is node else user.args[0]
            vector = None if other is node else constants.of_channels(other, site.channels, 2)
            if vector is not None:
                found += [(reader, user, vector) for reader in user.users if _takes_signs_of(reader, user)]
    same = [(reader, vector) for reader, via, vector in found if via is found[0][1]]
    zeros = {reader.meta["site"].sign_zero for reader, _ in same}
    return same if len(zeros) == 1 else []


def _takes_signs_of(user: fx.Node, node: fx.Node) -> bool:
    site = site_of(user)
    return (
        site is not None
        and site.geometry is not None
        and not isinstance(site.geometry["padding"], str)
        and site.activation_bits == 1
        and user.args[0] is node
        and len(shape_of(user)) == 4
    )


def _pack(graph: fx.Graph, node: fx.Node, site: Site, readers: list[tuple[fx.Node, Tensor | None]]) -> None:
    site.pack_shift = readers[0][1]
    site.pack_sign_zero = readers[0][0].meta["site"].sign_zero
    sums = {reader.args[0] for reader, _ in readers} - {node}
    for reader, _ in readers:
        reader.args = (None, *reader.args[1:])
    for unread in sums:
        if isinstance(unread, fx.Node) and not unread.users:
            graph.erase_node(unread)
    others = list(node.users)
    site.output = "both" if others else "packed"
    packed = node
    if others:
        with graph.inserting_after(node):
            packed = graph.call_function(operator.getitem, (node, 1))
            floats = graph.call_function(operator.getitem, (node, 0))
        floats.meta = {key: value for key, value in node.meta.items() if key != "site"}
        for user in others:
            user.replace_input_with(node, floats)
    for reader, _ in readers:
        reader.args = (packed, *reader.args[1:])
        reader.meta["site"].sign_zero = 0  # packed signs have none of their own
