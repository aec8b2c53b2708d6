"""Sub-bit layers put in place of the modules that compute what they compute."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from subbit_infer import cost, reference
from subbit_infer.nn import SubbitConv2d, SubbitLinear
from subbit_infer.observe import Call, Frame, Observer, geometry_of, version
from subbit_infer.recognize import TOLERANCE as SIGN_TOLERANCE
from subbit_infer.recognize import NotSubbitError, recognize
from subbit_infer.report import Converted, LayerReport, Report
from subbit_infer.weight import PackedWeight

TOLERANCE = 1e-4
"""How far an output of a new layer may be from the module's, relative to the largest magnitude."""

Layer = SubbitConv2d | SubbitLinear

_DOES_MORE = "its module does more than the {kind}; convert(fold=True) rewrites the graph instead"
_HOOKS = "it has forward hooks, which would be lost"
_NOT_RUN = "Nothing was run: binary activations, and weights that forward computes, need an example_input."


class _Kept(Exception):  # noqa: N818
    """A module stays as it is; the message says why, in a few words."""


@dataclass
class _Entry:
    """What becomes of a module, or of a call that is not a module's only one.

    Attributes:
        module: the module; None where there is no layer and there will be none.
        report: how it is listed.
        layer: what takes its place, or None.
        geometry: of its calls.
        takes_signs: whether the module takes the sign of its input, which else may come from signs.
    """

    module: nn.Module | None
    report: LayerReport
    layer: Layer | None = None
    geometry: Any = None
    takes_signs: bool = False

    def keep(self, why: str) -> None:
        """The module stays as it is after all."""
        self.layer = None
        self.report = LayerReport(self.report.name, self.report.shape, why=why)


def swap(model: nn.Module, example_input: Any = None, *, in_place: bool = False) -> Converted:
    """Puts sub-bit layers in place of the modules of a model that compute a sub-bit convolution or linear layer.

    Which modules do is observed: a copy of the model is run once, in evaluation mode and without gradients, and of
    every 2-d convolution and linear layer the weight is looked at that it is given, whatever it was computed from. A
    module is replaced if its one such call is all that it does, save for a factor and offset a channel behind it and
    the sign in front of it. It is run once more on a random input for that, and both outputs must come out again.

    An input is binary (``activation_bits=1``) if the module takes its sign, or if it was computed from signs or
    comparisons and holds only -1, 0 and 1. Values may be off by 1e-5: training code writes ``(sign(x) - t) + t``.

    Args:
        model: any module; its buffers, modes and hooks stay as they are.
        example_input: its input; a tuple is its positional arguments. None to run nothing, and look only at the
            ``weight`` of modules that are exactly ``nn.Conv2d`` or ``nn.Linear``, parametrized or not.
        in_place: whether to change the model itself; where anything fails it is left as it was.

    Returns:
        The copy, or the model itself, and a report of every layer.

    Raises:
        TypeError: ``model`` is no module, is a ScriptModule, or does not take such an input.
        ValueError: the input does not fit, the model cannot be copied, or it does not run with its new layers.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model must be a torch.nn.Module that is not a ScriptModule, got {type(model).__name__}")
    watched = _copy(model)
    paths = {module: path for path, module in watched.named_modules()}
    if example_input is None:
        entries = [entry for module, path in paths.items() if (entry := _entry_of_class(module, path)) is not None]
    else:
        entries = _Judge(watched, paths).run(example_input)
    for entry in entries:
        if in_place and entry.module is watched:
            entry.keep("it is the model itself, which cannot be changed in place")
    if example_input is not None:
        _keep_what_is_read(watched, paths, example_input, entries)
    target = model if in_place else _copy(model)
    converted = _with_layers(target, _layers(entries, paths))
    return Converted(
        converted, Report(tuple(e.report for e in entries), () if example_input is not None else (_NOT_RUN,))
    )


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"model must be a module that copy.deepcopy can copy: {error}") from error


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, and random numbers as if nothing had been drawn."""
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    with cost.evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        yield


def _call(model: nn.Module, example_input: Any) -> None:
    """Runs the model on a copy of its input, which it may change."""
    given = example_input if isinstance(example_input, tuple) else (example_input,)
    model(*(x.detach().clone() if isinstance(x, Tensor) else x for x in given))


class _Judge:
    """Decides about each module while the model runs."""

    def __init__(self, model: nn.Module, paths: Mapping[nn.Module, str]) -> None:
        self._model = model
        self._paths = paths
        self._observer = Observer()
        self._entries: dict[tuple[nn.Module, int], _Entry] = {}

    def run(self, example_input: Any) -> list[_Entry]:
        """Runs the model once; the entries in the order of the calls, and then what was not called."""
        try:
            with _quiet(self._model), self._observer.watch(self._model, self._leave):
                _call(self._model, example_input)
        except Exception as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"example_input must be an input of {type(self._model).__name__}: {error}") from error
        entries = list(self._entries.values())
        called = {module for module, _ in self._entries}
        for module, path in self._paths.items():
            if isinstance(module, nn.Conv2d | nn.Linear) and module not in called:
                entries.append(_kept(module, path, "it is not called with this input"))
        return entries

    def _leave(self, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Judges one call of a module."""
        if len(frame.calls) > 1 or frame.has_inner:
            self._list(frame)
            return
        entry = self._entries.get((frame.module, 0))
        is_new = entry is None
        if entry is None:
            call = frame.calls[0]
            shape = tuple(call.weight.shape)
            entry = _Entry(frame.module, LayerReport(self._paths[frame.module] or _class(frame.module), shape))
            self._entries[frame.module, 0] = entry
        elif entry.layer is None:
            return
        try:
            if is_new:
                recognize(frame.calls[0].weight)
            x = _input(frame, args, kwargs)
            if is_new:
                self._decide(entry, frame, x, output)
            else:
                self._confirm(entry, frame, x, output)
        except (_Kept, NotSubbitError) as why:
            entry.keep(str(why))

    def _list(self, frame: Frame) -> None:
        """Lists calls of a module that does more; it is not replaced, whatever it was before."""
        if (entry := self._entries.get((frame.module, 0))) is not None and entry.layer is not None:
            entry.keep("its calls differ in what they compute")
        seen: dict[str, int] = {}
        for number, call in enumerate(frame.calls):
            again = seen[call.kind] = seen.get(call.kind, -1) + 1
            if (frame.module, number) in self._entries:
                continue
            name = ".".join(filter(None, (self._paths[frame.module], call.kind + (f"_{again}" if again else ""))))
            report = LayerReport(name, tuple(call.weight.shape), why=_why_not_alone(frame.module, call))
            self._entries[frame.module, number] = _Entry(None, report)

    def _decide(self, entry: _Entry, frame: Frame, x: Tensor, output: Any) -> None:
        """Finds the layer that gives the module's outputs."""
        module, call = frame.module, frame.calls[0]
        _check_module(module)
        kind = _class(module)
        probe = _probe_like(x)
        try:
            inner, expected = self._observer.probe(module, probe.clone())
        except Exception as error:  # whatever the module makes of such an input
            raise _Kept(f"{kind} does not take the random input that tells what it computes: {error}") from error
        if len(inner.calls) != 1 or inner.has_inner:
            raise _Kept(_DOES_MORE.format(kind=call.kind))
        seen = inner.calls[0]
        if not isinstance(expected, Tensor):
            raise _Kept(_DOES_MORE.format(kind=call.kind))
        modes = _modes(seen, probe)
        weight, bias, note = _effective(seen, expected)
        packed = recognize(weight, bias)
        layer = _layer(packed, seen, modes)
        _check_output(layer, probe, expected)
        if modes["activation_bits"] == 32 and self._is_binary(x):
            layer = _layer(packed, seen, {"activation_bits": 1, "sign_zero": 0})
        _check_output(layer, x, output)
        entry.layer, entry.geometry = layer, call.geometry
        entry.report = LayerReport.of_weight(
            entry.report.name, entry.report.shape, packed, layer.activation_bits, why=note
        )
        entry.takes_signs = modes["activation_bits"] == 1

    def _confirm(self, entry: _Entry, frame: Frame, x: Tensor, output: Any) -> None:
        """Compares a further call of a module with its layer."""
        assert entry.layer is not None
        if frame.calls[0].geometry != entry.geometry:
            raise _Kept("its calls differ in stride, padding, dilation or groups")
        if entry.layer.activation_bits == 1 and not entry.takes_signs and not self._is_binary(x):
            modes = {"activation_bits": 32, "sign_zero": 0}
            packed = entry.layer.packed_weight()
            entry.layer = _layer(packed, frame.calls[0], modes)
            entry.report = replace(entry.report, activation_bits=32)
        _check_output(entry.layer, x, output)

    def _is_binary(self, x: Tensor) -> bool:
        """Whether it comes from signs and holds -1, 0 and 1 up to rounding, zeros exactly."""
        return x in self._observer.signs and bool(((x == 0) | ((x.abs() - 1).abs() <= SIGN_TOLERANCE)).all())


def _class(module: nn.Module) -> str:
    return type(module).__name__


def _why_not_alone(module: nn.Module, call: Call) -> str:
    """Why a call is left in a module that does more."""
    try:
        recognize(call.weight)
    except NotSubbitError as why:
        return str(why)
    if any(isinstance(child, torch.jit.ScriptModule) for child in module.children()):
        return "it may be in a ScriptModule, which cannot be watched"
    return _DOES_MORE.format(kind=call.kind)


def _check_module(module: nn.Module) -> None:
    """What the module's outputs do not show."""
    _check_padding(module)
    # The observer's own are the first in front and the last behind.
    if any(len(m._forward_pre_hooks) > 1 or len(m._forward_hooks) > 1 for m in module.modules()):
        raise _Kept(_HOOKS)


def _check_padding(module: nn.Module) -> None:
    if (mode := getattr(module, "padding_mode", "zeros")) != "zeros":
        raise _Kept(f"its padding_mode is {mode!r}")


def _input(frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The one tensor that a module was called with."""
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
        raise _Kept("it is called with more than one tensor")
    x = args[0]
    if not x.is_floating_point():
        raise _Kept(f"its input is {str(x.dtype).removeprefix('torch.')}")
    if version(x) != frame.version:
        raise _Kept("it changes its input in place")
    return x


def _probe_like(x: Tensor) -> Tensor:
    """Random numbers of x's shape, dtype and device: zeros, both signs, and all magnitudes up to some times x's.

    They tell a convolution from one with a ReLU, a clamp or a shift beside it, which the recorded input may not reach.
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(x.shape, generator=generator) * 10 ** (-6 * torch.rand(x.shape, generator=generator))
    values[torch.rand(x.shape, generator=generator) < 1 / 8] = 0
    most = x.abs().amax().item() if x.numel() else 0.0
    return (values * (most if 0 < most < float("inf") else 1.0)).to(x.dtype).to(x.device)


def _modes(call: Call, given: Tensor) -> dict[str, int]:
    """What the call did to the module's input first: nothing, or take its sign."""
    seen = call.x
    assert seen is not None
    if call.kind == "linear" and seen.numel() == given.numel() and seen.shape[-1:] == given.shape[-1:]:
        seen = seen.reshape(given.shape)
    if seen.shape == given.shape and seen.is_floating_point():
        if torch.equal(seen, given.to(seen.dtype)) and seen.dtype == given.dtype:
            return {"activation_bits": 32, "sign_zero": 0}
        # (sign(x) - t) + t rounds as its largest term does.
        eps = torch.finfo(seen.dtype).eps
        limit = max(SIGN_TOLERANCE, 2 * eps * float(given.abs().amax())) if given.numel() else SIGN_TOLERANCE
        for sign_zero in (0, 1):
            if bool(((seen - reference.binarize(given, sign_zero)).abs() <= limit).all()):
                return {"activation_bits": 1, "sign_zero": sign_zero}
        if bool(((seen - torch.where(given > 0, 1.0, -1.0)).abs() <= limit).all()):
            raise _Kept("it takes -1 for the sign of 0")
    raise _Kept(f"its {call.kind} sees neither the module's input nor the sign of it")


def _effective(call: Call, output: Tensor) -> tuple[Tensor, Tensor | None, str]:
    """Weight and bias with the factor and offset a channel that the module puts behind the call, and a note on them."""
    sums = call.output
    assert sums is not None
    if call.kind == "linear" and sums.numel() == output.numel() and sums.shape[-1:] == output.shape[-1:]:
        sums = sums.reshape(output.shape)
    if sums.shape != output.shape or not output.is_floating_point():
        raise _Kept(_DOES_MORE.format(kind=call.kind))
    if torch.equal(sums, output):
        return call.weight, call.bias, ""
    channel = -3 if call.kind == "conv2d" else -1
    fit = _affine(*(t.double().movedim(channel, 0).flatten(1) for t in (sums, output)), 16 * _eps(output))
    if fit is None:
        raise _Kept(_DOES_MORE.format(kind=call.kind))
    factor, offset = fit
    bias = None if call.bias is None else call.bias.double() * factor
    if offset is not None:
        bias = offset if bias is None else bias + offset
    weight = call.weight.double() * factor.reshape(-1, *[1] * (call.weight.dim() - 1))
    note = "holds the factor behind it" if offset is None else "holds the factor and offset behind it"
    return weight.to(call.weight.dtype), None if bias is None else bias.float(), note


def _affine(x: Tensor, y: Tensor, limit: float) -> tuple[Tensor, Tensor | None] | None:
    """Factors (C,) and offsets (C,) or None, such that factor * x + offset is y in each row; None if there are none.

    Args:
        x: (C, n) float64.
        y: (C, n) float64.
        limit: largest difference, relative to the row's largest magnitude.
    """
    most = y.abs().amax(1)
    factor = (x * y).sum(1) / (x * x).sum(1)
    if bool(((factor[:, None] * x - y).abs().amax(1) <= limit * most).all()):
        return factor, None
    x_mean, y_mean = x.mean(1), y.mean(1)
    centred = x - x_mean[:, None]
    factor = (centred * y).sum(1) / (centred * centred).sum(1)
    offset = y_mean - factor * x_mean
    fits = (factor[:, None] * x + offset[:, None] - y).abs().amax(1) <= limit * most
    return (factor, offset) if bool(fits.all()) else None


def _layer(packed: PackedWeight, call: Call, modes: Mapping[str, int]) -> Layer:
    kind: Any = SubbitConv2d if call.kind == "conv2d" else SubbitLinear
    layer: Layer = kind.from_packed(packed, **call.geometry, **modes)
    return layer.eval()


def _eps(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps


def _check_output(layer: Layer, x: Tensor, expected: Any) -> None:
    """Whether the layer gives what the module gave."""
    if not isinstance(expected, Tensor):
        raise _Kept(f"its output is a {type(expected).__name__}")
    try:
        actual = layer(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _Kept(f"no sub-bit layer takes its input: {error}") from error
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise _Kept(f"its output is {expected.dtype} {tuple(expected.shape)}, not {actual.dtype} {tuple(actual.shape)}")
    if not expected.numel():
        return
    most = float(expected.abs().amax())
    difference = float((actual.double() - expected.double()).abs().amax())
    limit = max(TOLERANCE, 8 * _eps(expected)) * most
    if not difference <= limit:
        raise _Kept(f"its output differs by {difference:.2g}, of {most:.2g} at most")


def _keep_what_is_read(
    model: nn.Module, paths: Mapping[nn.Module, str], example_input: Any, entries: list[_Entry]
) -> None:
    """Runs the model with its new layers, and takes back those of which code reads what only the old module has."""
    owners: dict[Any, _Entry] = {entry.layer: entry for entry in entries if entry.layer is not None}
    trial = _with_layers(model, _layers(entries, paths))
    while owners:
        try:
            with _quiet(trial):
                _call(trial, example_input)
            return
        except Exception as error:
            layer = getattr(error, "obj", None)  # of an AttributeError
            entry = owners.pop(layer, None) if isinstance(layer, nn.Module) else None
            if entry is None:
                raise ValueError(f"model does not run with its new layers: {error}") from error
            assert entry.module is not None
            trial = _with_layers(trial, {paths[entry.module]: entry.module})
            entry.keep(f"code outside of it reads its {getattr(error, 'name', None)}")


def _layers(entries: list[_Entry], paths: Mapping[nn.Module, str]) -> dict[str, nn.Module]:
    """The new layers by the path of what they replace."""
    return {paths[e.module]: e.layer for e in entries if e.module is not None and e.layer is not None}


def _with_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """The model with layers under every name of the modules at some paths; as it was, where that fails."""
    if "" in layers:
        return layers[""].train(model.training)
    named = list(model.named_modules(remove_duplicate=False))
    first = dict(named)
    new = {first[path]: layer.train(first[path].training) for path, layer in layers.items()}
    done: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for path, module in named:
            if module in new:
                parent, _, attribute = path.rpartition(".")
                done.append((first[parent], attribute, module))
                setattr(first[parent], attribute, new[module])
    except BaseException:
        for owner, attribute, module in done:
            owner._modules[attribute] = module
        raise
    return model


def _entry_of_class(module: nn.Module, path: str) -> _Entry | None:
    """What becomes of a module of which nothing but its class and weight is known."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return None
    kind = parametrize.type_before_parametrizations(module)
    if kind not in (nn.Conv2d, nn.Linear):
        return _kept(module, path, f"what a {kind.__name__} computes is seen with an example_input only")
    try:
        if module._forward_pre_hooks or module._forward_hooks:
            raise _Kept(_HOOKS)
        with _quiet(module):
            packed = recognize(module.weight, module.bias)
        if isinstance(module, nn.Linear):
            layer: Layer = SubbitLinear.from_packed(packed)
        else:
            _check_padding(module)
            layer = SubbitConv2d.from_packed(
                packed, **geometry_of(module.stride, module.padding, module.dilation, module.groups)
            )
    except (_Kept, NotSubbitError) as why:
        return _kept(module, path, str(why))
    report = LayerReport.of_weight(path or _class(module), tuple(module.weight.shape), packed, 32)
    return _Entry(module, report, layer)


def _kept(module: nn.Module, path: str, why: str) -> _Entry:
    weight = getattr(module, "weight", None)
    is_known = isinstance(weight, Tensor) and not nn.parameter.is_lazy(weight)
    return _Entry(None, LayerReport(path or _class(module), tuple(weight.shape) if is_known else (), why=why))
