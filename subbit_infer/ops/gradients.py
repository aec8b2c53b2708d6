"""Gradients of the operator ``conv2d``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from subbit_infer.core.conv_args import ConvArgs


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Saves what :func:`backward` needs of the arguments of ``conv2d``."""
    args = ConvArgs(*inputs)
    ctx.vector_dtypes = [None if t is None else t.dtype for t in inputs[3:8]]
    if args.activation == "none":  # then backward needs neither, and a residual is large
        args = args._replace(bias=None, residual=None)
    ctx.save_for_backward(*args[:7])
    ctx.rest = inputs[8:]


def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of all float arguments, as if the weight were decoded; a binarized x gets that of sign: zero."""
    arguments: tuple[Any, ...] = (*ctx.saved_tensors, None, *ctx.rest)
    args = ConvArgs(*arguments)
    x, _, _, scale, *_ = args
    needed = ctx.needs_input_grad
    plain = args._replace(x=x.detach().to(torch.float32), slope=None, activation="none")
    grad = grad.to(torch.float32)
    grad_x = grad_scale = None
    grad_shift = grad.sum((0, 2, 3)) if needed[7] else None
    before = torch.ops.subbit_infer.conv2d(*plain.of_conv2d) if args.activation != "none" and any(needed[:7]) else None
    grad, grad_slope = args.epilogue.backward(before, grad)
    if needed[0] and args.activation_bits == 1:
        grad_x = torch.zeros_like(x)
    elif needed[0]:
        weight = torch.ops.subbit_infer.decode(
            args.packed_indices, args.packed_codebook, args.units, args.codewords, args.unit
        )
        scaled = grad if scale is None else grad * scale.to(torch.float32)[:, None, None]
        grad_x = conv2d_input(x.shape, weight, scaled, args.stride, args.padding, args.dilation, args.groups)
        grad_x = grad_x.to(x.dtype)
    if needed[3]:
        sums = torch.ops.subbit_infer.conv2d(*plain._replace(scale=None, bias=None, residual=None).of_conv2d)
        grad_scale = (grad * sums).sum((0, 2, 3))
    grad_bias = grad.sum((0, 2, 3)) if needed[4] else None
    grads = (grad_scale, grad_bias, grad if needed[5] else None, grad_slope if needed[6] else None, grad_shift)
    in_their_dtypes = (None if g is None else g.to(d) for g, d in zip(grads, ctx.vector_dtypes, strict=True))
    return (grad_x, None, None, *in_their_dtypes) + (None,) * len(ctx.rest)


def no_backward(ctx: Any, *grads: Tensor) -> None:
    """Packed activations have no gradients."""
    raise NotImplementedError(
        "convolutions from or to packed activations have no gradients; use output='float' on a float x"
    )
