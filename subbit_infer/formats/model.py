"""Converted models as one safetensors file: save and load."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from subbit_infer.core.atomic import replacing
from subbit_infer.core.safetensors_io import reading
from subbit_infer.formats.header import (
    FORMAT,
    FORMAT_VERSION,
    GEOMETRY,
    MODES,
    Header,
    SubbitLayer,
    describe,
    key_of,
    some,
)
from subbit_infer.nn import SubbitConv2d, SubbitLinear


def save(model: nn.Module, path: str | os.PathLike[str], notes: Mapping[str, str] | None = None) -> None:
    """Writes a model with sub-bit layers to one safetensors file, replacing it at once or leaving it as it was.

    The tensors are those of the state_dict. The metadata hold, each a string:

    - ``format`` and ``version``: "subbit_infer.model" and "1".
    - ``layers``: JSON; for each sub-bit layer by its name the ``kind`` ("conv2d" or "linear"), ``in_channels``,
      ``out_channels``, ``unit``, ``codewords``, ``tau``, the modes of :class:`subbit_infer.nn.Modes`, ``vectors`` (the
      names of those that it has) and, of a convolution, ``stride``, ``padding``, ``dilation`` and ``groups``.
    - ``shared``: JSON; names of tensors that are the same memory as another, each with the name it is stored under.
    - ``orders``: JSON; names of tensors whose dimensions lie in memory in another order (channels_last), each with that
      order, outermost first. In the file they are contiguous. Tensors with gaps or repetitions in memory are stored
      contiguous and stay so.
    - ``notes``: JSON, if there are any; what the caller wants known of the model.

    Args:
        model: a module with at least one :class:`~subbit_infer.nn.SubbitConv2d` or
            :class:`~subbit_infer.nn.SubbitLinear`, or one of these.
        path: where to; the directory must exist.
        notes: what :func:`inspect` is to show, such as the data that the model was trained on and its accuracy.

    Raises:
        TypeError: ``model`` is not a module, or a note is not a string.
        ValueError: it has no sub-bit layer, or a state that is not strided tensors with values; or ``path`` names no
            file.
        OSError: the file cannot be written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for key, value in (notes or {}).items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise TypeError(f"notes must be strings by strings, got {value!r} by {key!r}")
    layers = {name: describe(module) for name, module in _named(model) if isinstance(module, SubbitLayer)}
    if not layers:
        raise ValueError(f"model must hold a SubbitConv2d or SubbitLinear, got {type(model).__name__} without any")
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    orders: dict[str, list[int]] = {}
    stored: dict[object, str] = {}
    for name, tensor in model.state_dict().items():
        _check_storable(name, tensor)
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in stored:
            shared[name] = stored[place]
            continue
        stored[place] = name
        if (order := _order(tensor)) is not None:
            orders[name] = order
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    parts: dict[str, object] = {"layers": layers, "shared": shared, "orders": orders}
    parts |= {"notes": dict(notes)} if notes else {}
    metadata = {"format": FORMAT, "version": str(FORMAT_VERSION)}
    metadata |= {key: json.dumps(value, separators=(",", ":")) for key, value in parts.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata))


def load(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Reads a file written by :func:`save` into a copy of a model.

    Everything that the file holds is checked: sizes before anything of that size is made, indices before they are used.

    Args:
        path: the file.
        model: a module of the same architecture, which stays as it is. It may be converted already, or dense: then its
            modules of those names are replaced by sub-bit layers. It may be on the device "meta", without any memory.

    Returns:
        The copy, in evaluation mode, with the tensors of the file, in their dtypes and on the devices of those that
        they replace; on the CPU where these are on "meta". What was shared when it was saved is shared again.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``model`` is no module.
        ValueError: the file is corrupt, of another format or a newer version; or it does not fit the model, whose
            layers or tensors are named.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    # Not inference tensors, even when called in inference mode: those do not count changes.
    with reading(path) as file, torch.inference_mode(False), torch.no_grad():
        header = Header.of_file(path, file)
        result = copy.deepcopy(model)
        replaced: dict[nn.Module, SubbitLayer] = {}
        for name, entry in header.layers.items():
            result = _with_layer(path, result, name, entry, replaced)
        target = result.state_dict(keep_vars=True)
        header.check_fits(target)
        _check_shared_modules(path, result, header.shared)
        try:
            result.load_state_dict(_state(header, file, target), assign=True)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit {type(model).__name__}: {_in_one_line(error)}") from error
    if left := [name for name, tensor in _all_tensors(result) if tensor.is_meta]:
        raise ValueError(f"model must have memory for what is not in its state_dict; on meta are {some(left)}")
    return result.eval()


def _state(header: Header, file: Any, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file as the model is to hold them; those that share memory are one object."""
    tensors: dict[str, Tensor] = {}
    for name, current in target.items():
        if (stored := header.shared.get(name, name)) not in tensors:
            tensor = header.read(file, stored).to("cpu" if current.is_meta else current.device)
            is_parameter = isinstance(current, nn.Parameter)
            tensors[stored] = nn.Parameter(tensor, current.requires_grad) if is_parameter else tensor
    return {name: tensors[header.shared.get(name, name)] for name in target}


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module under every name that it has."""
    yield from model.named_modules(remove_duplicate=False)


def _all_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_storable(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"the state_dict must hold tensors alone, {name!r} is a {type(tensor).__name__}")
    if nn.parameter.is_lazy(tensor) or tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        kind = "on meta" if tensor.is_meta else "no strided tensor with values"
        raise ValueError(f"the state_dict must hold strided tensors with values, {name!r} is {kind}")


def _order(tensor: Tensor) -> list[int] | None:
    """The dimensions in their order in memory, outermost first, if that is another order without gaps; else None."""
    if tensor.is_contiguous():
        return None
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda d: (-strides[d], -tensor.shape[d]))
    return order if tensor.permute(order).is_contiguous() else None


def _with_layer(
    path: str | os.PathLike[str],
    model: nn.Module,
    name: str,
    entry: dict[str, Any],
    replaced: dict[nn.Module, SubbitLayer],
) -> nn.Module:
    """The model with an empty layer under this name, as the entry describes it; a layer that is one already is kept."""
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"{path}: the model has no layer {name!r}") from error
    if isinstance(module, SubbitLayer) and describe(module) == entry:
        return model
    if (layer := replaced.get(module)) is None or describe(layer) != entry:
        layer = replaced[module] = _empty_layer(path, name, entry)
        _check_replaces(path, name, module, layer)
        device = next((tensor.device for _, tensor in _all_tensors(module)), torch.device("cpu"))
        layer.to_empty(device=device)
    if not name:
        return layer
    model.set_submodule(name, layer)
    return model


def _empty_layer(path: str | os.PathLike[str], name: str, entry: dict[str, Any]) -> SubbitLayer:
    """A layer as its entry describes it, on meta."""
    options: dict[str, Any] = {key: entry[key] for key in MODES} | {"device": "meta"}
    options |= {key: key in entry["vectors"] for key in ("scale", "bias", "shift", "pack_shift")}
    inputs, outputs, codewords = entry["in_channels"], entry["out_channels"], entry["codewords"]
    layer: SubbitLayer
    try:
        if entry["kind"] == "linear":
            layer = SubbitLinear(inputs, outputs, codewords, g=entry["unit"][0], **options)
        else:
            options |= {key: _tupled(entry[key]) for key in GEOMETRY}
            layer = SubbitConv2d(inputs, outputs, _tupled(entry["unit"]), codewords, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: layer {name!r}: {error}") from error
    if describe(layer) != entry:
        raise ValueError(f"{path}: layer {name!r} must have a slope just where its activation is 'prelu'")
    return layer


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_replaces(path: str | os.PathLike[str], name: str, module: nn.Module, layer: SubbitLayer) -> None:
    """Checks that a dense layer has the sizes of its replacement; other modules can be anything."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return
    g, kh, kw = layer.unit
    shape = (layer.packed_indices.shape[0], layer.units * g, kh, kw)
    given = (*module.weight.shape, 1, 1)[:4]
    if given != shape:
        raise ValueError(f"{path}: layer {name!r} stands for a weight {shape}, the model's is {given}")


def _check_shared_modules(path: str | os.PathLike[str], model: nn.Module, shared: Mapping[str, str]) -> None:
    """Checks that a module with several names has the same tensors under each of them in the file."""
    first: dict[nn.Module, str] = {}
    for name, module in _named(model):
        other = first.setdefault(module, name)
        for key in module.state_dict() if other != name else ():
            one, two = key_of(other, key), key_of(name, key)
            if shared.get(one, one) != shared.get(two, two):
                raise ValueError(f"{path}: {one!r} and {two!r} are one tensor in the model and two in the file")
