"""The torch.library operators: ``conv2d``, ``conv2d_packed``, and those that pack, unpack and decode.

The convolutions run compiled kernels for 1x3x3 and 8x1x1 units, on the CPU and, where they are built, on CUDA devices;
and the reference for every other unit and device. The operators check what they are given; ``ops`` is what people call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from subbit_infer.backends import cpu as _native
from subbit_infer.core import codebook as codebook_module
from subbit_infer.core import reference
from subbit_infer.core.activations import check_words, pack_signs, unpack_signs, word_count
from subbit_infer.core.bits import unpack_bits
from subbit_infer.core.conv_args import FLOATS, Call
from subbit_infer.core.epilogue import Epilogue
from subbit_infer.core.sizes import pair
from subbit_infer.core.weight import (
    check_channel_vector,
    check_indices,
    pack_codebook,
    pack_indices,
    unpack_codebook,
)

if TYPE_CHECKING:  # imported by the first call with a tensor on a CUDA device
    from subbit_infer.backends.cuda.weight import Prepared as CudaPrepared

_ARGUMENTS = (
    "Tensor x, Tensor packed_indices, Tensor packed_codebook, Tensor? scale, Tensor? bias, Tensor? residual, "
    "Tensor? slope, Tensor? shift, str activation, int[2] stride, int[2] padding, int[2] dilation, int groups, "
    "int units, int codewords, int[3] unit, int activation_bits, int sign_zero"
)
_PACKED_ARGUMENTS = "Tensor? x_nonzero, Tensor? pack_shift, int pack_sign_zero, bool float_output, bool packed_output"

_library = torch.library.Library("subbit_infer", "DEF")
for _schema in (
    f"conv2d({_ARGUMENTS}) -> Tensor",
    # x is floats, or the words `plus`; what is not asked for comes back empty.
    f"conv2d_packed({_ARGUMENTS}, {_PACKED_ARGUMENTS}) -> (Tensor y, Tensor plus, Tensor nonzero)",
    "pack(Tensor x, Tensor? shift, int sign_zero) -> (Tensor plus, Tensor nonzero)",
    "unpack(Tensor plus, Tensor? nonzero, int channels) -> Tensor",
    "decode(Tensor packed_indices, Tensor packed_codebook, int units, int codewords, int[3] unit) -> Tensor",
    "pack_indices(Tensor indices, int codewords) -> Tensor",
    "pack_codebook(Tensor codebook) -> Tensor",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def _indices(packed_indices: Tensor, units: int, codewords: int) -> Tensor:
    """The indices (C_out, units), checked."""
    indices = unpack_bits(packed_indices, units, codebook_module.tau_of(codewords))
    check_indices(indices, codewords)
    return indices


def _decode(packed_indices: Tensor, packed_codebook: Tensor, units: int, codewords: int, unit: Sequence[int]) -> Tensor:
    """The dense weight without scale, (C_out, units * g, kh, kw) float32."""
    indices = _indices(packed_indices, units, codewords)
    return codebook_module.decode(indices, unpack_codebook(packed_codebook, codewords, (unit[0], unit[1], unit[2])))


def _float_vector(vector: Tensor | None) -> Tensor | None:
    if vector is None or _native.is_vector(vector):
        return vector
    return vector.to(torch.float32).contiguous()


_Sizes = tuple[int, int, int, int]
_Outputs = tuple[Tensor | None, Tensor | None, Tensor | None]  # y, plus, nonzero


def _by_reference(call: Call, sizes: _Sizes) -> _Outputs:
    """Any unit on any device: decode and convolve in float32."""
    y = reference.conv2d(
        call.float_x(),
        _indices(call.packed_indices, call.units, call.codewords),
        unpack_codebook(call.packed_codebook, call.codewords, (call.unit[0], call.unit[1], call.unit[2])),
        call.bias,
        pair(call.stride),
        pair(call.padding),
        pair(call.dilation),
        call.groups,
        scale=call.scale,
        residual=call.residual,
        activation=call.activation,
        slope=call.slope,
        shift=call.shift,
        activation_bits=call.activation_bits,
        sign_zero=0 if call.is_packed else call.sign_zero,
    )
    plus, nonzero = pack_signs(y, call.pack_shift, call.pack_sign_zero) if call.packed_output else (None, None)
    return call.empty(sizes, call.dtype).copy_(y) if call.float_output else None, plus, nonzero


def _check_memory(name: str, tensor: Tensor) -> None:
    if tensor.untyped_storage().nbytes() == 0 and tensor.numel() > 0:
        raise ValueError(f"{name} must have its memory: its storage was resized to 0")


def _densely(call: Call, weight: _native.Prepared, sizes: _Sizes) -> _Outputs:
    """By the decoded weight, which is kept, where neither sharing nor matching bits pays."""
    if weight.decoded is None:
        weight.decoded = _decode(call.packed_indices, call.packed_codebook, call.units, call.codewords, call.unit)
    x = call.float_x()
    geometry = pair(call.stride), pair(call.padding), pair(call.dilation), call.groups
    if call.activation_bits == 1:  # sums of binary activations are exact, and so is what follows them
        x = x if call.is_packed else reference.binarize(x, call.sign_zero)
        y = call.epilogue.apply(weight.convolve_densely(x, None, None, *geometry))
    else:
        sums = weight.convolve_densely(x, _float_vector(call.scale), _float_vector(call.bias), *geometry)
        y = Epilogue(None, None, call.residual, call.activation, call.slope, call.shift).apply(sums)
    plus, nonzero = pack_signs(y, call.pack_shift, call.pack_sign_zero) if call.packed_output else (None, None)
    if not call.float_output:
        return None, plus, nonzero
    in_order = y.is_contiguous(memory_format=call.memory_format) and y.dtype == call.dtype
    return y if in_order else call.empty(sizes, call.dtype).copy_(y), plus, nonzero


def _rows_in_order(x: Tensor) -> Tensor:
    """X itself if its rows follow each other, as kernels read them, else a copy."""
    return x if _native.rows_follow(x) else x.contiguous()


def _input(call: Call) -> tuple[Tensor, Tensor | None]:
    """X and x_nonzero with their memory; words contiguous, as kernels read them."""
    x, x_nonzero = call.x, call.x_nonzero
    _check_memory("x", x)
    if not call.is_packed:
        return x, x_nonzero
    if x_nonzero is not None:
        _check_memory("x_nonzero", x_nonzero)
        x_nonzero = x_nonzero.contiguous()
    return x.contiguous(), x_nonzero


def _plain_arguments(call: Call) -> tuple[Any, ...]:
    """Scale and bias, geometry and how signs are taken, in the order in which kernels take them."""
    return (
        _float_vector(call.scale),
        _float_vector(call.bias),
        pair(call.stride),
        pair(call.padding),
        pair(call.dilation),
        call.groups,
        call.activation_bits,
        call.sign_zero,
    )


def _epilogue_arguments(call: Call) -> dict[str, Any]:
    """What follows scale and bias, by name."""
    return {
        "activation": call.activation,
        "slope": _float_vector(call.slope),
        "shift": _float_vector(call.shift),
        "pack_shift": _float_vector(call.pack_shift),
    }


def _on_cpu(call: Call, sizes: _Sizes) -> _Outputs:
    """The compiled kernels where there are any for the unit, else the reference."""
    unit = cast("tuple[int, int, int]", tuple(call.unit))
    if unit not in _native.UNITS:
        return _by_reference(call, sizes)
    x, x_nonzero = _input(call)
    residual = call.residual
    if not call.is_packed and x.dtype != torch.float32:
        x = x.to(torch.float32)
    if residual is not None:
        _check_memory("residual", residual)
        residual = _rows_in_order(residual.to(torch.float32))
    y = call.empty(sizes, torch.float32) if call.float_output else None
    plus, nonzero = call.empty_words(sizes) if call.packed_output else (None, None)
    weight = _native.prepare(call.packed_indices, call.packed_codebook, call.units, call.codewords, unit)
    is_done = _native.conv2d(
        weight,
        x,
        y,
        *_plain_arguments(call),
        **_epilogue_arguments(call),
        residual=residual,
        x_nonzero=x_nonzero,
        plus=plus,
        nonzero=nonzero,
        sizes=sizes,
    )
    if not is_done:
        return _densely(call, weight, sizes)
    if y is not None and call.dtype != torch.float32:
        y = y.to(call.dtype)
    return y, plus, nonzero


def _densely_on_cuda(call: Call, weight: CudaPrepared, sizes: _Sizes) -> _Outputs:
    """By the decoded weight and cuDNN, where no kernel is quicker.

    float32 is convolved without TF32, whatever torch's flags; float16 and bfloat16 with it, where products with +-1 are
    exact, or in their own type if rounding is the last thing done to the sums. Sums of binary activations are rounded
    to the integers that they are: some of cuDNN's algorithms are not exact.
    """
    from subbit_infer.backends.cuda import cudnn

    unit = cast("tuple[int, int, int]", tuple(call.unit))
    binary, is_half = call.activation_bits == 1, call.dtype != torch.float32
    dtype = call.dtype if call.is_bare and not binary else torch.float32
    x = call.float_x() if call.is_packed else call.x
    x = (reference.binarize(x, call.sign_zero) if binary and not call.is_packed else x).to(dtype)
    x, padding = reference.padded(x, unit[1:], pair(call.padding), pair(call.dilation))
    if not cudnn.has_cudnn(x, sizes):
        return _by_reference(call, sizes)
    decoded = weight.dense(
        dtype, lambda: _decode(call.packed_indices, call.packed_codebook, call.units, call.codewords, call.unit)
    )
    sums = cudnn.dense_sums(
        x, decoded, pair(call.stride), padding, pair(call.dilation), call.groups, allow_tf32=is_half and not binary
    )
    y = call.epilogue.apply(sums.round_() if binary else sums)
    plus, nonzero = _pack_on_device(y, call.pack_shift, call.pack_sign_zero) if call.packed_output else (None, None)
    if not call.float_output:
        return None, plus, nonzero
    in_order = y.is_contiguous(memory_format=call.memory_format) and y.dtype == call.dtype
    return y if in_order else call.empty(sizes, call.dtype).copy_(y), plus, nonzero


def _on_cuda(call: Call, sizes: _Sizes) -> _Outputs:
    """The compiled kernels where they are built and there are any for the unit, else the reference."""
    from subbit_infer.backends.cuda import runtime
    from subbit_infer.backends.cuda import weight as weights

    unit = cast("tuple[int, int, int]", tuple(call.unit))
    if unit not in _native.UNITS or not runtime.is_built():
        return _by_reference(call, sizes)
    x, x_nonzero = _input(call)
    residual = call.residual
    dtype = call.dtype
    if residual is not None:
        _check_memory("residual", residual)
        if residual.dtype != dtype:  # kernels read it in the dtype of x, and that must not round it
            dtype = torch.float32
            x, residual = x if call.is_packed else x.to(dtype), residual.to(dtype)
    y = call.empty(sizes, dtype) if call.float_output else None
    plus, nonzero = call.empty_words(sizes) if call.packed_output else (None, None)
    if 0 in sizes:
        return y if y is None else y.to(call.dtype), plus, nonzero
    weight = weights.prepare(call.packed_indices, call.packed_codebook, call.units, call.codewords, unit)
    is_started = runtime.conv2d(
        weight,
        x,
        y,
        *_plain_arguments(call),
        **_epilogue_arguments(call),
        residual=residual,
        x_nonzero=x_nonzero,
        plus=plus,
        nonzero=nonzero,
        is_bare=call.is_bare,
        sizes=sizes,
    )
    if not is_started:
        return _densely_on_cuda(call, weight, sizes)
    return y if y is None else y.to(call.dtype), plus, nonzero


def conv2d_cpu(*arguments: Any) -> Tensor:
    """``conv2d`` on the CPU; arguments as in its schema."""
    call = Call(*arguments)
    y = _on_cpu(call, call.check())[0]
    assert y is not None
    return y


def conv2d_cuda(*arguments: Any) -> Tensor:
    """``conv2d`` on a CUDA device; arguments as in its schema."""
    call = Call(*arguments)
    y = _on_cuda(call, call.check())[0]
    assert y is not None
    return y


def _conv2d_reference(*arguments: Any) -> Tensor:
    call = Call(*arguments)
    y = _by_reference(call, call.check())[0]
    assert y is not None
    return y


@torch.library.register_fake("subbit_infer::conv2d", lib=_library)
def _conv2d_fake(*arguments: Any) -> Tensor:
    call = Call(*arguments)
    return call.empty(call.check(), call.dtype)


def _or_empty(call: Call, outputs: _Outputs) -> tuple[Tensor, Tensor, Tensor]:
    """An operator returns tensors only: empty ones for what was not asked for."""
    y, plus, nonzero = outputs
    y = call.x.new_empty(0, dtype=call.dtype) if y is None else y
    plus = call.x.new_empty(0, dtype=torch.int64) if plus is None else plus
    return y, plus, call.x.new_empty(0, dtype=torch.int64) if nonzero is None else nonzero


def conv2d_packed_cpu(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``conv2d_packed`` on the CPU; arguments as in its schema."""
    call = Call(*arguments)
    return _or_empty(call, _on_cpu(call, call.check(packed=True)))


def conv2d_packed_cuda(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``conv2d_packed`` on a CUDA device; arguments as in its schema."""
    call = Call(*arguments)
    return _or_empty(call, _on_cuda(call, call.check(packed=True)))


def _conv2d_packed_reference(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*arguments)
    return _or_empty(call, _by_reference(call, call.check(packed=True)))


@torch.library.register_fake("subbit_infer::conv2d_packed", lib=_library)
def _conv2d_packed_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*arguments)
    sizes = call.check(packed=True)
    words = call.empty_words(sizes) if call.packed_output else (None, None)
    return _or_empty(call, (call.empty(sizes, call.dtype) if call.float_output else None, *words))


def _check_pack(x: Tensor, shift: Tensor | None, sign_zero: int) -> None:
    if x.dtype not in FLOATS or x.dim() != 4 or x.shape[1] < 1:
        raise TypeError(
            f"x must be (N, C, H, W) of float32, float16 or bfloat16 with C >= 1, got {x.dtype} {tuple(x.shape)}"
        )
    check_channel_vector("shift", shift, x.shape[1])
    if sign_zero not in (0, 1):
        raise ValueError(f"sign_zero must be 0 or 1, got {sign_zero}")


def _pack(x: Tensor, shift: Tensor | None, sign_zero: int) -> tuple[Tensor, Tensor]:
    _check_pack(x, shift, sign_zero)
    plus, nonzero = pack_signs(x, shift, sign_zero)
    return plus, plus.new_empty(0) if nonzero is None else nonzero


def _pack_on_cpu(x: Tensor, shift: Tensor | None, sign_zero: int) -> tuple[Tensor, Tensor]:
    _check_pack(x, shift, sign_zero)
    _check_memory("x", x)
    plus, nonzero = _native.pack(x.to(torch.float32), _float_vector(shift), sign_zero)
    return plus, plus.new_empty(0) if nonzero is None else nonzero


def _pack_on_device(x: Tensor, shift: Tensor | None, sign_zero: int) -> tuple[Tensor, Tensor | None]:
    """By the CUDA kernel where one is built and ``SUBBIT_PLAN`` does not forbid it, else by torch."""
    from subbit_infer.backends.cuda import runtime

    if not runtime.is_built() or _native.wanted_plan() == "dense" or x.numel() == 0:
        return pack_signs(x, shift, sign_zero)
    return runtime.pack(x, _float_vector(shift), sign_zero)


def pack_on_cuda(x: Tensor, shift: Tensor | None, sign_zero: int) -> tuple[Tensor, Tensor]:
    """``pack`` on a CUDA device; arguments as in its schema."""
    _check_pack(x, shift, sign_zero)
    _check_memory("x", x)
    plus, nonzero = _pack_on_device(x, shift, sign_zero)
    return plus, plus.new_empty(0) if nonzero is None else nonzero


@torch.library.register_fake("subbit_infer::pack", lib=_library)
def _pack_fake(x: Tensor, shift: Tensor | None, sign_zero: int) -> tuple[Tensor, Tensor]:
    _check_pack(x, shift, sign_zero)
    batch, channels, height, width = x.shape
    plus = x.new_empty((batch, height, width, word_count(channels)), dtype=torch.int64)
    return plus, plus.new_empty(0) if sign_zero else torch.empty_like(plus)


def _unpack(plus: Tensor, nonzero: Tensor | None, channels: int) -> Tensor:
    check_words(plus, nonzero, channels)
    return unpack_signs(plus, nonzero, channels)


@torch.library.register_fake("subbit_infer::unpack", lib=_library)
def _unpack_fake(plus: Tensor, nonzero: Tensor | None, channels: int) -> Tensor:
    check_words(plus, nonzero, channels)
    return plus.new_empty((*plus.shape[:3], channels), dtype=torch.float32).permute(0, 3, 1, 2)


@torch.library.register_fake("subbit_infer::decode", lib=_library)
def _decode_fake(
    packed_indices: Tensor, packed_codebook: Tensor, units: int, codewords: int, unit: Sequence[int]
) -> Tensor:
    g, kh, kw = unit
    return packed_indices.new_empty((packed_indices.shape[0], units * g, kh, kw), dtype=torch.float32)


@torch.library.register_fake("subbit_infer::pack_indices", lib=_library)
def _pack_indices_fake(indices: Tensor, codewords: int) -> Tensor:
    out_channels, units = indices.shape
    return indices.new_empty((out_channels, (units * codebook_module.tau_of(codewords) + 7) // 8), dtype=torch.uint8)


@torch.library.register_fake("subbit_infer::pack_codebook", lib=_library)
def _pack_codebook_fake(codebook: Tensor) -> Tensor:
    return codebook.new_empty(((codebook.numel() + 7) // 8,), dtype=torch.uint8)


_library.impl("conv2d", _conv2d_reference, "CompositeExplicitAutograd")
_library.impl("conv2d", conv2d_cpu, "CPU")
_library.impl("conv2d", conv2d_cuda, "CUDA")
_library.impl("conv2d_packed", _conv2d_packed_reference, "CompositeExplicitAutograd")
_library.impl("conv2d_packed", conv2d_packed_cpu, "CPU")
_library.impl("conv2d_packed", conv2d_packed_cuda, "CUDA")
_library.impl("pack", _pack, "CompositeExplicitAutograd")
_library.impl("pack", _pack_on_cpu, "CPU")
_library.impl("pack", pack_on_cuda, "CUDA")
_library.impl("unpack", _unpack, "CompositeExplicitAutograd")
_library.impl("decode", _decode, "CompositeExplicitAutograd")
_library.impl("pack_indices", pack_indices, "CompositeExplicitAutograd")
_library.impl("pack_codebook", pack_codebook, "CompositeExplicitAutograd")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    call = Call(*inputs)
    ctx.vector_dtypes = [None if t is None else t.dtype for t in inputs[3:8]]
    if call.activation == "none":  # then backward needs neither, and a residual is large
        call = call._replace(bias=None, residual=None)
    ctx.save_for_backward(*call[:7])
    ctx.rest = inputs[8:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of all float arguments, as if the weight were decoded; a binarized x gets that of sign: zero."""
    arguments: tuple[Any, ...] = (*ctx.saved_tensors, None, *ctx.rest)
    call = Call(*arguments)
    x, _, _, scale, *_ = call
    needed = ctx.needs_input_grad
    plain = call._replace(x=x.detach().to(torch.float32), slope=None, activation="none")
    grad = grad.to(torch.float32)
    grad_x = grad_scale = None
    grad_shift = grad.sum((0, 2, 3)) if needed[7] else None
    before = torch.ops.subbit_infer.conv2d(*plain.of_conv2d) if call.activation != "none" and any(needed[:7]) else None
    grad, grad_slope = call.epilogue.backward(before, grad)
    if needed[0] and call.activation_bits == 1:
        grad_x = torch.zeros_like(x)
    elif needed[0]:
        weight = torch.ops.subbit_infer.decode(
            call.packed_indices, call.packed_codebook, call.units, call.codewords, call.unit
        )
        scaled = grad if scale is None else grad * scale.to(torch.float32)[:, None, None]
        grad_x = conv2d_input(x.shape, weight, scaled, call.stride, call.padding, call.dilation, call.groups)
        grad_x = grad_x.to(x.dtype)
    if needed[3]:
        sums = torch.ops.subbit_infer.conv2d(*plain._replace(scale=None, bias=None, residual=None).of_conv2d)
        grad_scale = (grad * sums).sum((0, 2, 3))
    grad_bias = grad.sum((0, 2, 3)) if needed[4] else None
    grads = (grad_scale, grad_bias, grad if needed[5] else None, grad_slope if needed[6] else None, grad_shift)
    in_their_dtypes = (None if g is None else g.to(d) for g, d in zip(grads, ctx.vector_dtypes, strict=True))
    return (grad_x, None, None, *in_their_dtypes) + (None,) * len(ctx.rest)


def _no_backward(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        "convolutions from or to packed activations have no gradients; use output='float' on a float x"
    )


torch.library.register_autograd("subbit_infer::conv2d", _backward, setup_context=_setup_context, lib=_library)
torch.library.register_autograd("subbit_infer::conv2d_packed", _no_backward, lib=_library)
