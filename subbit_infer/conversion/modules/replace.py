"""Replaces modules with equivalent sub-bit layers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from subbit_infer.conversion.detection import NotSubbitError, recognize
from subbit_infer.conversion.modules.judge import (
    HOOKS,
    Judge,
    Layer,
    NotReplaceable,
    Verdict,
    check_padding,
    class_name,
    kept,
)
from subbit_infer.conversion.modules.observe import geometry_of, quiet, run
from subbit_infer.conversion.report import Converted, LayerReport, Report
from subbit_infer.nn import SubbitConv2d, SubbitLinear

_NOT_RUN = "Nothing was run: binary activations, and weights that forward computes, need an example_input."


def swap(model: nn.Module, example_input: Any = None, *, in_place: bool = False) -> Converted[nn.Module]:
    """Replaces the modules of a model that compute a sub-bit convolution or linear layer.

    Which modules do is observed: a copy of the model is run once, in evaluation mode and without gradients, and of
    every 2-d convolution and linear layer the weight is looked at that it is given, whatever it was computed from. A
    module is replaced if its one such call is all that it does, save for a factor and offset per channel after it and
    the sign before it. It is run once more on a random input for that, and both outputs must come out again.

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
        verdicts = [
            verdict for module, path in paths.items() if (verdict := _verdict_of_class(module, path)) is not None
        ]
    else:
        verdicts = Judge(watched, paths).run(example_input)
    for verdict in verdicts:
        if in_place and verdict.module is watched:
            verdict.keep("it is the model itself, which cannot be changed in place")
    if example_input is not None:
        _keep_what_is_used(watched, paths, example_input, verdicts)
    layers = _layers(verdicts, paths)
    report = Report(tuple(verdict.report for verdict in verdicts), () if example_input is not None else (_NOT_RUN,))
    return Converted(_with_layers(model if in_place else _copy(model), layers), report)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"model must be a module that copy.deepcopy can copy: {error}") from error


def _keep_what_is_used(
    model: nn.Module, paths: Mapping[nn.Module, str], example_input: Any, verdicts: list[Verdict]
) -> None:
    """Runs the model with its new layers, and takes back those whose old module code needs, or still calls."""
    owners: dict[nn.Module, Verdict] = {verdict.layer: verdict for verdict in verdicts if verdict.layer is not None}
    trial = _with_layers(model, _layers(verdicts, paths))
    while owners:
        called: set[nn.Module] = set()
        try:
            with quiet(trial), _calls(owners, called):
                run(trial, example_input)
            found = [(layer, "code outside of it holds the old module") for layer in owners if layer not in called]
        except Exception as error:
            layer = getattr(error, "obj", None)  # whose attribute an AttributeError misses
            if not isinstance(layer, nn.Module) or layer not in owners:
                raise ValueError(f"model does not run with its new layers: {error}") from error
            found = [(layer, f"code outside of it reads its {getattr(error, 'name', None)}")]
        if not found:
            return
        for layer, why in found:
            verdict = owners.pop(layer)
            assert verdict.module is not None
            trial = _with_layers(trial, {paths[verdict.module]: verdict.module})
            verdict.keep(why)


@contextmanager
def _calls(layers: Iterable[nn.Module], called: set[nn.Module]) -> Iterator[None]:
    """Collects which layers are called."""
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(lambda layer, args: called.add(layer)).remove)
        yield


def _layers(verdicts: list[Verdict], paths: Mapping[nn.Module, str]) -> dict[str, nn.Module]:
    """The new layers by the path of what they replace."""
    return {paths[v.module]: v.layer for v in verdicts if v.module is not None and v.layer is not None}


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


def _verdict_of_class(module: nn.Module, path: str) -> Verdict | None:
    """The verdict on a module by its class and weight alone."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return None
    kind = parametrize.type_before_parametrizations(module)
    if kind not in (nn.Conv2d, nn.Linear):
        return kept(module, path, f"what a {kind.__name__} computes is seen with an example_input only")
    try:
        if module._forward_pre_hooks or module._forward_hooks:
            raise NotReplaceable(HOOKS)
        with quiet(module):
            packed = recognize(module.weight, module.bias)
        if isinstance(module, nn.Linear):
            layer: Layer = SubbitLinear.from_packed(packed)
        else:
            check_padding(module)
            layer = SubbitConv2d.from_packed(
                packed, **geometry_of(module.stride, module.padding, module.dilation, module.groups)
            )
    except (NotReplaceable, NotSubbitError) as why:
        return kept(module, path, str(why))
    report = LayerReport.of_weight(path or class_name(module), tuple(module.weight.shape), packed, 32)
    return Verdict(module, report, layer)
