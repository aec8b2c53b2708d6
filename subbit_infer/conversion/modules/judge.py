"""Judges, while a model runs, which modules do nothing but a sub-bit convolution or linear layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from subbit_infer.conversion.detection import TOLERANCE as SIGN_TOLERANCE
from subbit_infer.conversion.detection import NotSubbitError, recognize
from subbit_infer.conversion.modules.observe import Call, Frame, Observer, quiet, run, version
from subbit_infer.conversion.report import LayerReport
from subbit_infer.core import reference
from subbit_infer.core.weight import PackedWeight
from subbit_infer.nn import SubbitConv2d, SubbitLinear

TOLERANCE = 1e-4
"""How far an output of a new layer may be from the module's, relative to the largest magnitude."""

Layer = SubbitConv2d | SubbitLinear
"""What takes the place of a module."""

_DOES_MORE = "its module does more than the {kind}; convert(fold=True) rewrites the graph instead"
_LEAST_OUTPUTS = 16  # per channel, to tell what is after it
HOOKS = "it has forward hooks, which would be lost"


class NotReplaceable(Exception):  # noqa: N818  # a verdict, not an error
    """A module stays as it is; the message says why, in a few words."""


@dataclass
class Verdict:
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


def kept(module: nn.Module, path: str, why: str) -> Verdict:
    """The verdict on a module that was not looked at further."""
    weight = getattr(module, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, Tensor) and not nn.parameter.is_lazy(weight) else ()
    return Verdict(None, LayerReport(path or class_name(module), shape, why=why))


@dataclass(frozen=True)
class _Probe:
    """What a module did with a random input: modes of its layer, sums of its call, and its output."""

    x: Tensor
    modes: dict[str, int]
    sums: Tensor
    output: Tensor


class Judge:
    """Decides about each module while the model runs."""

    def __init__(self, model: nn.Module, paths: Mapping[nn.Module, str]) -> None:
        self._model = model
        self._paths = paths
        self._observer = Observer()
        self._verdicts: dict[tuple[nn.Module, int], Verdict] = {}

    def run(self, example_input: Any) -> list[Verdict]:
        """Runs the model once; the verdicts in the order of the calls, and then what was not called."""
        try:
            with quiet(self._model), self._observer.watch(self._model, self._leave):
                run(self._model, example_input)
        except Exception as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"example_input must be an input of {type(self._model).__name__}: {error}") from error
        verdicts = list(self._verdicts.values())
        listed = {module for module, _ in self._verdicts}
        for verdict in verdicts:
            if verdict.module is not None and verdict.layer is not None:
                listed.update(verdict.module.modules())  # which hold its weight and go with it
        for module, path in self._paths.items():
            if isinstance(module, nn.Conv2d | nn.Linear) and module not in listed:
                verdicts.append(kept(module, path, "it is not called with this input"))
        return verdicts

    def _leave(self, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Judges one call of a module."""
        if len(frame.calls) > 1 or frame.has_inner:
            self._list(frame)
            return
        verdict = self._verdicts.get((frame.module, 0))
        is_new = verdict is None
        if verdict is None:
            call = frame.calls[0]
            shape = tuple(call.weight.shape)
            verdict = Verdict(frame.module, LayerReport(self._paths[frame.module] or class_name(frame.module), shape))
            self._verdicts[frame.module, 0] = verdict
        elif verdict.layer is None:
            return
        try:
            if is_new:
                recognize(frame.calls[0].weight)
            x = _input(frame, args, kwargs)
            if is_new:
                self._decide(verdict, frame, x, output)
            else:
                self._confirm(verdict, frame, x, output)
        except (NotReplaceable, NotSubbitError) as why:
            verdict.keep(str(why))

    def _list(self, frame: Frame) -> None:
        """Lists calls of a module that does more; it is not replaced, whatever it was before."""
        if (verdict := self._verdicts.get((frame.module, 0))) is not None and verdict.layer is not None:
            verdict.keep("its calls differ in what they compute")
        seen: dict[str, int] = {}
        for number, call in enumerate(frame.calls):
            again = seen[call.kind] = seen.get(call.kind, -1) + 1
            if (frame.module, number) in self._verdicts:
                continue
            name = ".".join(filter(None, (self._paths[frame.module], call.kind + (f"_{again}" if again else ""))))
            report = LayerReport(name, tuple(call.weight.shape), why=_why_not_alone(frame.module, call))
            self._verdicts[frame.module, number] = Verdict(None, report)

    def _decide(self, verdict: Verdict, frame: Frame, x: Tensor, output: Any) -> None:
        """Finds the layer that gives the module's outputs."""
        _check_module(frame.module)
        recorded = frame.calls[0]
        probes = [self._probe(frame.module, recorded.kind, x, seed) for seed in range(_probes(recorded))]
        modes = probes[0].modes
        weight, bias, note = _effective(recorded, [(p.sums, p.output) for p in probes])
        packed = recognize(weight, bias)
        layer = _layer(packed, recorded, modes)
        for probe in probes:
            _check_output(layer, probe.x, probe.output)
        if modes["activation_bits"] == 32 and self._is_binary(x):
            layer = _layer(packed, recorded, {"activation_bits": 1, "sign_zero": 0})
        _check_output(layer, x, output)
        verdict.layer, verdict.geometry = layer, recorded.geometry
        verdict.takes_signs = modes["activation_bits"] == 1
        name, shape = verdict.report.name, verdict.report.shape
        verdict.report = LayerReport.of_weight(name, shape, packed, layer.activation_bits, why=note)

    def _probe(self, module: nn.Module, kind: str, x: Tensor, seed: int) -> _Probe:
        """What the module does for a random input."""
        given = _random_like(x, seed)
        try:
            frame, output = self._observer.probe(module, given.clone())
        except Exception as error:  # whatever the module makes of such an input
            raise NotReplaceable(f"it does not take the random input that shows what it computes: {error}") from error
        if len(frame.calls) != 1 or frame.has_inner or not isinstance(output, Tensor):
            raise NotReplaceable(_DOES_MORE.format(kind=kind))
        (call,) = frame.calls
        assert call.x is not None
        assert call.output is not None
        modes = _modes(kind, _as_given(kind, call.x, given), given)
        return _Probe(given, modes, _as_given(kind, call.output, output), output)

    def _confirm(self, verdict: Verdict, frame: Frame, x: Tensor, output: Any) -> None:
        """Compares a further call of a module with its layer."""
        assert verdict.layer is not None
        if frame.calls[0].geometry != verdict.geometry:
            raise NotReplaceable("its calls differ in stride, padding, dilation or groups")
        if verdict.layer.activation_bits == 1 and not verdict.takes_signs and not self._is_binary(x):
            modes = {"activation_bits": 32, "sign_zero": 0}
            packed = verdict.layer.packed_weight()
            verdict.layer = _layer(packed, frame.calls[0], modes)
            verdict.report = replace(verdict.report, activation_bits=32)
        _check_output(verdict.layer, x, output)

    def _is_binary(self, x: Tensor) -> bool:
        """Whether it comes from signs and holds -1, 0 and 1 up to rounding, zeros exactly."""
        return x in self._observer.signs and bool(((x == 0) | ((x.abs() - 1).abs() <= SIGN_TOLERANCE)).all())


def class_name(module: nn.Module) -> str:
    """What a model is called that has no name of its own."""
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
    check_padding(module)
    # The observer's own are the first in front and the last after it.
    if any(len(m._forward_pre_hooks) > 1 or len(m._forward_hooks) > 1 for m in module.modules()):
        raise NotReplaceable(HOOKS)


def check_padding(module: nn.Module) -> None:
    """Padding other than zeros is no SubbitConv2d's.

    Raises:
        NotReplaceable: it is another.
    """
    if (mode := getattr(module, "padding_mode", "zeros")) != "zeros":
        raise NotReplaceable(f"its padding_mode is {mode!r}")


def _input(frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The one tensor that a module was called with."""
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
        raise NotReplaceable("it is called with other arguments than one tensor")
    x = args[0]
    if not x.is_floating_point():
        raise NotReplaceable(f"its input is {str(x.dtype).removeprefix('torch.')}")
    if not x.numel():
        raise NotReplaceable("its input is empty")
    if version(x) != frame.version:
        raise NotReplaceable("it changes its input in place")
    return x


def _probes(call: Call) -> int:
    """How many probes it takes for enough outputs per channel: a few may all be what a ReLU lets through."""
    assert call.output is not None
    return math.ceil(_LEAST_OUTPUTS * call.weight.shape[0] / max(call.output.numel(), call.weight.shape[0]))


def _random_like(x: Tensor, seed: int) -> Tensor:
    """Random numbers of x's shape, dtype and device: zeros, both signs, and all magnitudes up to some times x's.

    They tell a convolution from one with a ReLU, a clamp or a shift beside it, which the recorded input may not reach.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(x.shape, generator=generator) * 10 ** (-6 * torch.rand(x.shape, generator=generator))
    values[torch.rand(x.shape, generator=generator) < 1 / 8] = 0
    most = x.abs().amax().item()
    return (values * (most if 0 < most < float("inf") else 1.0)).to(x.dtype).to(x.device)


def _as_given(kind: str, tensor: Tensor, given: Tensor) -> Tensor:
    """What a product of matrices sees or gives, which may be rows, in the shape that the module has."""
    is_rows = kind == "linear" and tensor.numel() == given.numel() and tensor.shape[-1:] == given.shape[-1:]
    return tensor.reshape(given.shape) if is_rows else tensor


def _modes(kind: str, seen: Tensor, given: Tensor) -> dict[str, int]:
    """What was done to the module's input first: nothing, or its sign was taken."""
    if seen.shape == given.shape and seen.dtype == given.dtype:
        if torch.equal(seen, given):
            return {"activation_bits": 32, "sign_zero": 0}
        for sign_zero in (0, 1):
            if bool(((seen - reference.binarize(given, sign_zero)).abs() <= SIGN_TOLERANCE).all()):
                return {"activation_bits": 1, "sign_zero": sign_zero}
        if bool(((seen - torch.where(given > 0, 1.0, -1.0)).abs() <= SIGN_TOLERANCE).all()):
            raise NotReplaceable("it takes -1 for the sign of 0")
    raise NotReplaceable(f"its {kind} sees neither the module's input nor the sign of it")


def _effective(call: Call, probes: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor | None, str]:
    """Weight and bias with the factor and offset per channel that follow the call in the module, and a note on them."""
    if all(torch.equal(sums, output) for sums, output in probes):
        return call.weight, call.bias, ""
    fit = None
    if all(sums.shape == output.shape and output.is_floating_point() for sums, output in probes):
        channel = -3 if call.kind == "conv2d" else -1
        rows = [torch.stack(side).double().movedim(channel, 0).flatten(1) for side in zip(*probes, strict=True)]
        fit = _affine(rows[0], rows[1], 16 * _eps(probes[0][1]))
    if fit is None:
        raise NotReplaceable(_DOES_MORE.format(kind=call.kind))
    factor, offset = fit
    bias = None if call.bias is None else call.bias.double() * factor
    if offset is not None:
        bias = offset if bias is None else bias + offset
    weight = call.weight.double() * factor.reshape(-1, *[1] * (call.weight.dim() - 1))
    note = "holds the factor after it" if offset is None else "holds the factor and offset after it"
    return weight.float(), None if bias is None else bias.float(), note


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
        raise NotReplaceable(f"its output is a {type(expected).__name__}")
    try:
        actual = layer(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise NotReplaceable(f"no sub-bit layer takes its input: {error}") from error
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise NotReplaceable(
            f"its output is {expected.dtype} {tuple(expected.shape)}, not {actual.dtype} {tuple(actual.shape)}"
        )
    if not expected.numel():
        return
    most = float(expected.abs().amax())
    difference = float((actual.double() - expected.double()).abs().amax())
    limit = max(TOLERANCE, 8 * _eps(expected)) * most
    if not difference <= limit:
        raise NotReplaceable(f"its output differs by {difference:.2g}, of {most:.2g} at most")
