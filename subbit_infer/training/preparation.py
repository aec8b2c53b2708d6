"""Makes an ordinary network trainable as a sub-bit one, and an ordinary network of it again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from subbit_infer.core.codebook import UNIT_1X1, UNIT_3X3
from subbit_infer.core.units import Unit
from subbit_infer.training import codebooks
from subbit_infer.training.config import Config
from subbit_infer.training.latent import Estimated, SubbitWeight
from subbit_infer.training.layers import SignConv2d, SignLinear, of_signs

Layer = nn.Conv2d | nn.Linear


def body_of(model: nn.Module) -> list[str]:
    """The names of the layers that are trained sub-bit unless others are named.

    All 3x3 convolutions, and those 1x1 ones without a shortcut's stride whose input channels divide by 8, but the first
    convolution and the last linear layer, which stay in full precision (supplement, section F). Linear layers are taken
    only by name.
    """
    convs = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return [name for name, conv in convs[1:] if _why_not(conv) is None and not _is_shortcut(name, conv)]


def _is_shortcut(name: str, conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and ("downsample" in name or "shortcut" in name)


def _why_not(layer: nn.Module, activation_bits: int | None = None) -> str | None:
    """Why a layer cannot be sub-bit, with activations of so many bits; None where it can."""
    # A layer like BodyConv2d may take the sign itself; one that was finished after a first stage does.
    own = 1 if isinstance(layer, SignConv2d | SignLinear) else getattr(layer, "activation_bits", None)
    if own == 1 and activation_bits == 32:
        return "it takes the sign of its input, which has no gradient: activation_bits must be 1, got 32"
    if own is None and activation_bits == 1 and type(layer).forward not in (nn.Conv2d.forward, nn.Linear.forward):
        return f"activation_bits is 1, and {type(layer).__name__} has a forward method of its own"
    if isinstance(layer, nn.Linear):
        return None if layer.in_features % 8 == 0 else f"in_features must be divisible by 8, got {layer.in_features}"
    if not isinstance(layer, nn.Conv2d):
        return f"it must be an nn.Conv2d or nn.Linear, got {type(layer).__name__}"
    if layer.padding_mode != "zeros":
        return f"padding_mode must be 'zeros', got {layer.padding_mode!r}"
    if layer.kernel_size == (1, 1):
        channels = layer.in_channels // layer.groups
        return None if channels % 8 == 0 else f"input channels of a group must be divisible by 8, got {channels}"
    return None if layer.kernel_size == (3, 3) else f"kernel_size must be (3, 3) or (1, 1), got {layer.kernel_size}"


def prepare(model: nn.Module, config: Config | None = None, layers: Iterable[str] | None = None) -> nn.Module:
    """Makes layers of a network trainable as sub-bit or 1-bit ones, in place.

    The parameters stay: an optimizer made before still holds them. They are now *latent* weights
    (``layer.parametrizations.weight.original``), and ``layer.weight`` is what they stand for. Where activations are
    binary the layers also take the sign of their input, and every ``nn.ReLU`` becomes an ``nn.Hardtanh``: after a ReLU
    there are no negative values (supplement, section A).

    Args:
        model: the network; its weights are where training starts.
        config: the method and its numbers.
        layers: names of ``nn.Conv2d`` and ``nn.Linear`` modules; None for :func:`body_of`.

    Returns:
        ``model``.

    Raises:
        KeyError: there is no such module.
        ValueError: a layer cannot be sub-bit, or is prepared already; the message says why. Or weights and
            activations are both to stay floats.
    """
    config = Config() if config is None else config
    if config.method == "float" and config.activation_bits == 32:
        raise ValueError("a float network with float activations needs no preparation: train it as it is")
    names = body_of(model) if layers is None else list(layers)
    if not names:
        raise ValueError(f"layers must name at least one layer; {type(model).__name__} has none that can be sub-bit")
    modules = dict(model.named_modules())
    for name in names:  # before anything changes
        if name not in modules:
            raise KeyError(f"layers must be names of modules, got {name!r}")
        if parametrize.is_parametrized(modules[name]):
            raise ValueError(f"layers must not be parametrized yet, got {name!r}, which is")
        why = _why_not(modules[name], config.activation_bits)
        if why is not None:
            raise ValueError(f"the layer {name!r} cannot be sub-bit: {why}")
    if config.activation_bits == 1:
        for name, module in modules.items():
            if isinstance(module, nn.ReLU):
                model.set_submodule(name, nn.Hardtanh(inplace=module.inplace))
    for number, name in enumerate(names):
        layer = modules[name]
        assert isinstance(layer, Layer)
        if config.activation_bits == 1:
            layer = of_signs(layer, config)
            model.set_submodule(name, layer)
        if config.method != "float":
            _parametrize(layer, config, config.seed + number)
    return model


def _unit_of(layer: Layer) -> Unit:
    return UNIT_3X3 if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) else UNIT_1X1


def _parametrize(layer: Layer, config: Config, seed: int) -> None:
    unit = _unit_of(layer)
    weight = SubbitWeight(config, unit, None, seed)
    with torch.no_grad():
        layer.weight.mul_(config.factor_of_latents)
        units = weight.units(weight.standardized(layer.weight))
    weight = SubbitWeight(config, unit, codebooks.start(config, unit, units, seed), seed).to(layer.weight.device)
    parametrize.register_parametrization(layer, "weight", weight.train(layer.training), unsafe=True)


def prepared_layers(model: nn.Module) -> Iterator[tuple[str, Layer, SubbitWeight]]:
    """The layers that :func:`prepare` changed: name, layer and parametrization."""
    for name, module in model.named_modules():
        if isinstance(module, Layer) and parametrize.is_parametrized(module, "weight"):
            weight = module.parametrizations.weight[0]  # type: ignore[index, union-attr]
            if isinstance(weight, SubbitWeight):
                yield name, module, weight


def latent_weight(layer: Layer) -> Tensor:
    """The parameter that a prepared layer's weight is made of."""
    return cast("Tensor", layer.parametrizations.weight.original)  # type: ignore[union-attr]


def _prepared(model: nn.Module) -> list[tuple[str, Layer, SubbitWeight]]:
    """The layers of :func:`prepared_layers`; none is all right where signs of activations are trained alone."""
    found = list(prepared_layers(model))
    if not any(isinstance(module, Estimated) for module in model.modules()):
        raise ValueError(f"model must have prepared layers, got a {type(model).__name__} without: call prepare first")
    return found


def set_progress(model: nn.Module, fraction: float) -> None:
    """Says how much of the training is done, before a step or an epoch: schedules follow it.

    Raises:
        ValueError: the fraction is not in [0, 1], or no layer is prepared.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be in [0, 1], got {fraction}")
    _prepared(model)
    for module in model.modules():
        if isinstance(module, Estimated):
            module.set_progress(fraction)


def refine_(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Changes codebooks as their method says. Call it after every ``optimizer.step()``, which is what it counts.

    Under DistributedDataParallel call it on every rank: codebooks stay the same on all.

    Raises:
        ValueError: no layer is prepared, the optimizer does not hold a latent weight, or a latent weight is not finite.
    """
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, layer, weight in _prepared(model):
        latent = latent_weight(layer)
        if id(latent) not in rates:
            raise ValueError(f"optimizer must hold the latent weight of {name!r}: make it from model.parameters()")
        codebooks.refine_(weight, latent, float(rates[id(latent)]))


def finish(model: nn.Module) -> nn.Module:
    """Ends training, in place: plain layers whose weights are +-scale, which ``convert`` takes without loss.

    Returns:
        ``model``.

    Raises:
        ValueError: no layer is prepared, or a weight is not finite; nothing is changed then.
    """
    found = _prepared(model)
    for name, layer, _ in found:
        if not bool(latent_weight(layer).isfinite().all()):
            raise ValueError(f"latent weights must be finite, that of {name!r} is not: the training diverged")
    for _, layer, _ in found:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    for module in model.modules():
        if isinstance(module, SignConv2d | SignLinear):
            module.sign = None
    return model
