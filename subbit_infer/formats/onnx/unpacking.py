"""Rewrites programs without packed activations, as ONNX can express them, with the same results."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from subbit_infer.core.codebook import tau_of
from subbit_infer.core.conv_args import ConvArgs
from subbit_infer.core.epilogue import Epilogue
from subbit_infer.formats.onnx.functions import DOMAIN, DOMAIN_VERSION, Kind

_ops = torch.ops.subbit_infer
_aten = torch.ops.aten
_NCHW = (0, 2, 3)  # where the dimensions N, H and W of words are in floats


@dataclass(frozen=True)
class _Words:
    """Stands for words of packed activations.

    Attributes:
        bits: (N, C, H, W) bool, what the bits of the words say.
        signs_of: (N, C, H, W) floats whose signs the words hold; None if not known.
        sign_zero: the sign of 0 in them.
    """

    bits: Tensor
    signs_of: Tensor | None = None
    sign_zero: int = 0


class Unpacked(torch.nn.Module):
    """Runs a graph with activations as floats where it has them packed, and epilogues as plain operators.

    To be exported again: the result has our operators only as ``torch.onnx`` is to write them.

    Args:
        graph_module: of a :class:`torch.export.ExportedProgram`.
    """

    def __init__(self, graph_module: torch.fx.GraphModule) -> None:
        super().__init__()
        _fold_packed_weights(graph_module)
        self.graph_module = graph_module

    def forward(self, *args: Any) -> Any:
        """What the graph computes.

        Raises:
            ValueError: packed activations are the result, or go into an operator that is not known to work on them.
        """
        interpreter = _Interpreter(self.graph_module)
        interpreter.extra_traceback = False  # it would make errors longer than a line
        return interpreter.run(*args)


class _Interpreter(torch.fx.Interpreter):
    """Runs our operators, and others on words, with floats."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in _OURS:
            return _OURS[target](*args, **kwargs)
        if not any(isinstance(arg, _Words) for arg in args):
            return super().call_function(target, args, kwargs)
        if target not in _ON_WORDS:
            raise ValueError(f"packed activations go into {target}, which ONNX cannot express on them")
        return _ON_WORDS[target](*args, **kwargs)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        if any(isinstance(value, _Words) for value in torch.utils._pytree.tree_leaves(args)):
            raise ValueError("packed activations are a result of the model, which ONNX cannot express")
        return super().output(target, args, kwargs)


def _conv2d(*arguments: Any) -> Tensor:
    args = ConvArgs(*arguments)
    channels = args.packed_indices.shape[0]
    scale, bias = (
        vector.new_ones(channels, dtype=torch.float32) * usual if given is None else given.to(torch.float32)
        for vector, given, usual in ((args.x, args.scale, 1.0), (args.x, args.bias, 0.0))
    )
    (sh, sw), (ph, pw), (dh, dw) = args.stride, args.padding, args.dilation
    y = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{Kind(False, args.activation_bits, args.sign_zero).op_type}",
        (args.x.to(torch.float32), args.packed_indices, args.packed_codebook, scale, bias),
        {
            **{"units": args.units, "codewords": args.codewords, "tau": tau_of(args.codewords)},
            **{"unit": list(args.unit), "strides": [sh, sw], "pads": [ph, pw, ph, pw], "dilations": [dh, dw]},
            "group": args.groups,
        },
        dtype=torch.float32,
        shape=args.check(),
        version=DOMAIN_VERSION,
    )
    y = Epilogue(None, None, args.residual, args.activation, args.slope, args.shift).apply(y)
    return y.to(args.x.dtype)


def _conv2d_packed(*arguments: Any) -> tuple[Tensor, _Words | Tensor, _Words | Tensor]:
    args = ConvArgs(*arguments)
    x: Any = args.x
    if isinstance(x, _Words):
        if x.signs_of is not None:
            args = args._replace(x=x.signs_of, sign_zero=x.sign_zero)
        else:
            args = args._replace(x=_unpack(x, args.x_nonzero, 0), sign_zero=0)
    elif x.dtype == torch.int64:
        raise ValueError("packed activations are an input of the model, which ONNX cannot express")
    y = _conv2d(*args.of_conv2d)
    if not args.packed_output:
        return y, y.new_empty(0), y.new_empty(0)
    return y, *_pack(y.to(torch.float32), args.pack_shift, args.pack_sign_zero)


def _pack(x: Tensor, shift: Tensor | None, sign_zero: int) -> tuple[_Words, _Words | Tensor]:
    shifted = x.to(torch.float32)
    if shift is not None:
        shifted = shifted + shift.to(torch.float32)[:, None, None]
    if sign_zero:
        return _Words(shifted >= 0, shifted, 1), shifted.new_empty(0)
    return _Words(shifted > 0, shifted), _Words(shifted.sign() != 0)


def _unpack(plus: Any, nonzero: Any, channels: int) -> Tensor:
    if not isinstance(plus, _Words):
        raise ValueError("packed activations are an input of the model, which ONNX cannot express")
    negative = ~plus.bits if nonzero is None else nonzero.bits & ~plus.bits
    return plus.bits.to(torch.float32) - negative.to(torch.float32)


def _slice(words: _Words, dim: int = 0, *bounds: Any) -> _Words:
    return _moved(words, lambda t: _aten.slice.Tensor(t, _NCHW[dim], *bounds))


def _transpose(words: _Words, first: int, second: int) -> _Words:
    return _moved(words, lambda t: t.transpose(_NCHW[first], _NCHW[second]))


def _either(a: _Words, b: _Words) -> _Words:
    return _Words(a.bits | b.bits)


def _both(a: _Words, b: _Words) -> _Words:
    return _Words(a.bits & b.bits)


def _moved(words: _Words, move: Callable[[Tensor], Tensor]) -> _Words:
    signs_of = None if words.signs_of is None else move(words.signs_of)
    return _Words(move(words.bits), signs_of, words.sign_zero)


def _refuse(*_: Any) -> Any:
    raise ValueError("indices and codebooks must be constant to be exported, and used by convolutions alone")


_OURS: dict[Any, Callable[..., Any]] = {
    _ops.conv2d.default: _conv2d,
    _ops.conv2d_packed.default: _conv2d_packed,
    _ops.pack.default: _pack,
    _ops.unpack.default: _unpack,
    _ops.decode.default: _refuse,
    _ops.pack_indices.default: _refuse,
    _ops.pack_codebook.default: _refuse,
}
_ON_WORDS: dict[Any, Callable[..., Any]] = {
    _aten.slice.Tensor: _slice,
    _aten.transpose.int: _transpose,
    _aten.bitwise_or.Tensor: _either,
    _aten.__or__.Tensor: _either,
    _aten.bitwise_and.Tensor: _both,
    _aten.__and__.Tensor: _both,
}


def _fold_packed_weights(graph_module: torch.fx.GraphModule) -> None:
    """Computes indices and codebooks that the graph packs from constants, in place."""
    for node in list(graph_module.graph.nodes):
        if node.target not in (_ops.pack_indices.default, _ops.pack_codebook.default):
            continue
        value = _constant(graph_module, node)
        if value is None:
            continue
        name = f"_{node.name}"
        graph_module.register_buffer(name, value)
        with graph_module.graph.inserting_before(node):
            node.replace_all_uses_with(graph_module.graph.get_attr(name))
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()


def _constant(graph_module: torch.fx.GraphModule, node: torch.fx.Node) -> Any:
    """The value of a node that depends on constants alone, else None."""
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(graph_module)
    if node.op != "call_function":
        return None
    known = {argument: _constant(graph_module, argument) for argument in node.all_input_nodes}
    if any(value is None for value in known.values()):
        return None
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda argument: known[argument])
    return node.target(*args, **kwargs)  # type: ignore[operator]
