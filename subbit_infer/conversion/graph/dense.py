"""Speeds up dense layers: they take half of the time when the rest is sub-bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from subbit_infer.conversion.graph.constants import Constants, exact
from subbit_infer.conversion.graph.find import affine_of, arguments
from subbit_infer.conversion.graph.sites import shape_of, site_of, sites

aten = torch.ops.aten

_END = 2**63 - 1  # as torch.export writes the end of a slice


def fold_dense_norms(module: fx.GraphModule, constants: Constants) -> None:
    """Folds each BatchNorm after a dense convolution with a constant weight into its weight and bias."""
    for node in list(module.graph.nodes):
        if node.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        conv = node.args[0]
        if conv.target is not aten.conv2d.default or len(conv.users) != 1:
            continue
        if all(user.args[1] == 0 for user in node.users):
            _fold(module, constants, conv, node)


def _fold(module: fx.GraphModule, constants: Constants, conv: fx.Node, norm: fx.Node) -> None:
    a, affine = arguments(conv), affine_of(norm, constants)
    weight = constants.tensor(a["weight"])
    bias = None if a["bias"] is None else constants.tensor(a["bias"])
    if affine is None or weight is None or (bias is None and a["bias"] is not None):
        return
    gain, offset = affine
    offset = offset if bias is None else exact(bias) * gain + offset
    with module.graph.inserting_before(conv):
        scaled = exact(weight) * gain[:, None, None, None]
        new_weight = _attribute(module, f"{conv.name}_weight", scaled, a["weight"])
        new_bias = _attribute(module, f"{conv.name}_bias", offset, a["weight"])
    conv.args = (a["input"], new_weight, new_bias, a["stride"], a["padding"], a["dilation"], a["groups"])
    for user in list(norm.users):
        user.replace_all_uses_with(conv, propagate_meta=False)
        module.graph.erase_node(user)
    module.graph.erase_node(norm)


def pool_first(module: fx.GraphModule) -> None:
    """Moves monotone activations after max-pooling, where fewer numbers are left."""
    for node in list(module.graph.nodes):
        if node.target is not aten.max_pool2d.default:
            continue
        act = node.args[0]
        if act.target not in (aten.relu.default, aten.hardtanh.default) or len(act.users) != 1:
            continue
        with module.graph.inserting_after(node):
            after = module.graph.call_function(act.target, (node, *act.args[1:]), act.kwargs)
        after.meta = dict(node.meta)
        node.replace_all_uses_with(after, delete_user_cb=lambda user, after=after: user is not after)
        node.args = (act.args[0], *node.args[1:])
        module.graph.erase_node(act)


def prefer_channels_last(module: fx.GraphModule, constants: Constants) -> None:
    """Makes dense convolutions compute in channels_last, and gives the float sites after them contiguous memory.

    For the first layers of a ResNet-18, 7x7 and pooled, that is 3 ms instead of 9.
    """
    for node in list(module.graph.nodes):
        if node.target is not aten.conv2d.default or len(shape_of(node)) != 4:
            continue
        a = arguments(node)
        weight = constants.tensor(a["weight"])
        if weight is not None and tuple(weight.shape[2:]) != (1, 1):
            with module.graph.inserting_before(node):
                in_order = weight.detach().contiguous(memory_format=torch.channels_last)
                new = _attribute(module, f"{node.name}_channels_last", in_order, a["weight"])
            node.replace_input_with(a["weight"], new)
    for node, site in sites(module.graph):
        x: Any = node.args[0]
        if site.activation_bits == 1 or site_of(x) is not None or len(shape_of(x)) != 4 or x.op == "placeholder":
            continue
        with module.graph.inserting_after(x):
            contiguous = module.graph.call_function(aten.contiguous.default, (x,))
        contiguous.meta = dict(x.meta)
        x.replace_all_uses_with(contiguous, delete_user_cb=lambda user, new=contiguous: user is not new)


def take_pixels_first(module: fx.GraphModule) -> None:
    """Strided dense 1x1 convolutions see the pixels that they read, taken out before them.

    2.6 ms instead of 7.5 for ResNet-50's last shortcut.
    """
    for node in list(module.graph.nodes):
        if node.target is not aten.conv2d.default or len(shape_of(node)) != 4:
            continue
        a = arguments(node)
        if shape_of(a["weight"])[2:] != (1, 1) or list(a["padding"]) != [0, 0] or list(a["stride"]) == [1, 1]:
            continue
        x = a["input"]
        with module.graph.inserting_before(node):
            for dimension, step in zip((2, 3), a["stride"], strict=True):
                x = module.graph.call_function(aten.slice.Tensor, (x, dimension, 0, _END, step))
        node.args = (x, a["weight"], a["bias"], [1, 1], [0, 0], a["dilation"], a["groups"])


def _attribute(module: fx.GraphModule, name: str, value: Tensor, like: fx.Node) -> fx.Node:
    """A buffer with a value, of the dtype and on the device of another node."""
    value = value.to(like.meta["val"].device, like.meta["val"].dtype)
    module.register_buffer(name, value)
    node = module.graph.get_attr(name)
    node.meta["val"] = value
    return node
