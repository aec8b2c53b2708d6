"""Makes the weights of a network sub-bit without training: each unit becomes the nearest codeword."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from subbit_infer.conversion.detection import NotSubbitError, alpha_of, check_unit, recognize
from subbit_infer.conversion.report import Converted, LayerReport, Report
from subbit_infer.core import codebook as codebooks
from subbit_infer.core.codebook import Unit

Layers = Iterable[str] | Callable[[str, nn.Module], bool]
"""Which layers: names or fnmatch patterns, or a function of name and layer."""

METHODS: Mapping[str, Callable[[Tensor, int, Unit, int], Tensor]] = {
    "frequent": lambda weight, tau, unit, seed: codebooks.most_frequent(weight, tau, unit),
    "kmeans": lambda weight, tau, unit, seed: codebooks.hamming_kmeans(weight, tau, unit, seed=seed),
    "vanilla": lambda weight, tau, unit, seed: codebooks.vanilla(tau, unit, seed=seed),
    "equal_intervals": lambda weight, tau, unit, seed: codebooks.equal_intervals(tau, unit),
}
"""How a codebook is found: from a weight, tau, the unit and a seed."""

FEW_CHANNELS = 4
"""A convolution of so few input channels sees the image, and stays in full precision."""

# Of a channel that the codewords do not fit, over the layer's mean magnitude. There the best scale is 0 or below, but a
# sub-bit weight needs one above 0.
_LEAST_SCALE = 1e-6

_UNTRAINED = "The weights were replaced without training: check the accuracy, and retrain if it is too low."


def compress(
    model: nn.Module,
    tau: int | Mapping[str, int] | None = 5,
    method: str = "frequent",
    *,
    layers: Layers | None = None,
    max_bits: float | None = None,
    max_error: float | None = None,
    seed: int = 0,
) -> Converted[nn.Module]:
    """Makes the weights of a 1-bit or float network sub-bit, without training.

    In each layer, every unit becomes the nearest codeword of a codebook made for the layer. A weight that is +-alpha in
    every output channel keeps its alpha; another one gets the least-squares scale of the new signs, ``mean(w * s)``,
    at float16's precision.
    The layers stay dense: ``subbit_infer.convert`` replaces them by fast ones. A layer that computes its weight from
    ``weight`` in its own ``forward`` does so with the new one.

    Args:
        model: The network; it stays as it is.
        tau: Bits of an index, 1 to 8, for all layers; or a dict from names or fnmatch patterns to it, of which the
            first that matches a layer counts; or None with ``max_bits`` or ``max_error``.
        method: How codebooks are made: "frequent" (the most frequent units, :func:`codebook.most_frequent`), "kmeans"
            (few changed signs, :func:`codebook.hamming_kmeans`), "vanilla" (random, :func:`codebook.vanilla`) or
            "equal_intervals" (:func:`codebook.equal_intervals`).
        layers: Names or fnmatch patterns of the ``Conv2d`` and ``Linear`` layers to compress, or a function of name and
            module. By default every convolution but the first one, those of at most 4 input channels and depthwise
            ones; no linear layer. Units are 3x3 kernels, or 8 input channels of a 1x1 or linear weight; layers that do
            not divide into such are skipped.
        max_bits: Instead of ``tau``: the most index bits per weight (tau / 9 or tau / 8, as the paper counts), on
            average over these layers. The layer with the largest error gets the next bit, as long as there is one left.
        max_error: Instead of ``tau``: each layer takes the least tau whose error, as the report has it, is at most
            this; layers that would need more than 8 bits are skipped.
        seed: Of "vanilla" and "kmeans"; the next layer takes the next number.

    Returns:
        The compressed copy, and the report with every layer's error.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, a name matches no layer, ``max_bits`` is below what tau = 1 takes, or
            the model cannot be copied.

    Source: paper, section 3 (nearest codewords) and supplement, section E (codebooks without training).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    _check_goal(tau, max_bits, max_error)
    compressed = _copy(model)
    with torch.no_grad():
        found = {
            name: module for name, module in compressed.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
        }
        why = _unwanted(found, layers)
        weights: dict[str, _Weight] = {}
        for number, (name, module) in enumerate(found.items()):
            if name in why:
                continue
            try:
                weights[name] = _Weight.of(name, module, compressed, method, seed + number)
            except NotSubbitError as error:
                why[name] = str(error)
        if max_bits is not None:
            taus = _taus_within_bits(weights, max_bits)
        elif max_error is not None:
            taus = _taus_within_error(weights, max_error, why)
        else:
            taus = _taus_given(weights, tau)
        entries = {name: _replace(name, found[name], weights[name], bits) for name, bits in taus.items()}
    report = tuple(
        entries[name] if name in entries else LayerReport(name, tuple(module.weight.shape), why=why[name])
        for name, module in found.items()
    )
    return Converted(compressed, Report(report, _notes(weights, taus)))


@dataclass(frozen=True, eq=False)
class _Weight:
    """A layer's weight and what it would become.

    Attributes:
        dense: float32 (C_out, C_in / groups, kh, kw).
        dtype: what it was, and what the new one is to be exact in.
        unit: what an index names.
        alpha: float32 (C_out,), of a weight that is +-alpha; None for another.
        method: of the codebook.
        seed: of the codebook.
    """

    dense: Tensor
    dtype: torch.dtype
    unit: Unit
    alpha: Tensor | None
    method: str
    seed: int
    errors: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, module: nn.Conv2d | nn.Linear, model: nn.Module, method: str, seed: int) -> _Weight:
        """The weight of a layer; raises NotSubbitError if it cannot become sub-bit."""
        _check_own(name, module, model)
        weight = module.weight.detach()
        if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise NotSubbitError(f"weights are {str(weight.dtype).removeprefix('torch.')}")
        if weight.is_meta:
            raise NotSubbitError("weights are on the meta device")
        dense = weight.to(torch.float32).reshape(*weight.shape, *[1] * (4 - weight.dim()))
        check_unit(dense)
        if not bool(dense.isfinite().all()):
            raise NotSubbitError("weights are not finite")
        if not bool(dense.any()):
            raise NotSubbitError("all weights are 0")
        try:
            alpha = alpha_of(dense)
        except NotSubbitError:
            alpha = None
        unit = codebooks.default_unit((dense.shape[2], dense.shape[3]))
        return cls(dense, weight.dtype, unit, alpha, method, seed)

    @property
    def units(self) -> int:
        """How many there are: what a bit more of tau costs in bits."""
        return self.dense.numel() // (self.unit[0] * self.unit[1] * self.unit[2])

    def approximate(self, tau: int) -> tuple[Tensor, int]:
        """The sub-bit weight, float32 and exact in its dtype; and the channels whose best scale is not above 0."""
        codewords = METHODS[self.method](self.dense, tau, self.unit, self.seed)
        signs = codebooks.decode(codebooks.assign(self.dense, codewords), codewords)
        if self.alpha is not None:
            scale, unfit = self.alpha, 0
        else:
            scale = (self.dense.double() * signs).mean(dim=(1, 2, 3)).float()
            least = max(_LEAST_SCALE * float(self.dense.abs().mean()), torch.finfo(self.dtype).tiny)
            unfit = int((scale < least).sum())
            scale = _rounded(scale.clamp(min=least))
        scale = scale.to(self.dtype).float()
        return scale[:, None, None, None] * signs, unfit

    def error(self, tau: int) -> float:
        """The share of changed signs if it is +-alpha, else the relative error."""
        if tau not in self.errors:
            self.errors[tau] = self.error_of(self.approximate(tau)[0])
        return self.errors[tau]

    def error_of(self, approximation: Tensor) -> float:
        """As `error`, of what `approximate` gave."""
        if self.alpha is not None:
            return float((approximation.sign() != self.dense.sign()).double().mean())
        return float((approximation - self.dense).double().norm() / self.dense.double().norm())

    def relative_error(self, tau: int) -> float:
        """``|new - old| / |old|``, where a changed sign counts twice its magnitude; to compare any layers by."""
        return 2 * self.error(tau) ** 0.5 if self.alpha is not None else self.error(tau)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:  # the old weight_norm leaves a tensor of its last gradient's graph behind
        raise ValueError(f"model must be one that copy.deepcopy copies: {str(error).splitlines()[0]}") from error


def _rounded(scale: Tensor) -> Tensor:
    """To 11 significant bits, as float16 has them: then float32 adds up to 2^13 of +-scale exactly, in any order.

    So a network of binary activations gives the same bits dense and sub-bit. Otherwise an activation within rounding of
    0 would have another sign in one of them, and what follows would jump.
    """
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def _check_goal(tau: int | Mapping[str, int] | None, max_bits: float | None, max_error: float | None) -> None:
    given = {"tau": tau, "max_bits": max_bits, "max_error": max_error}
    if sum(value is not None for value in given.values()) != 1:
        text = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"exactly one of tau, max_bits and max_error must be given, the others None, got {text}")
    for name, bound in (("max_bits", max_bits), ("max_error", max_error)):
        if bound is None:
            continue
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise TypeError(f"{name} must be a number, got {type(bound).__name__}")
        if not bound >= 0:
            raise ValueError(f"{name} must be at least 0, got {bound}")
    if tau is None:
        return
    for value in tau.values() if isinstance(tau, Mapping) else (tau,):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"tau must be an integer or a dict of integers, got {type(value).__name__}")
        if not 1 <= value <= codebooks.MAX_TAU:
            raise ValueError(f"tau must be 1 to {codebooks.MAX_TAU}, got {value}")


def _check_own(name: str, module: nn.Module, model: nn.Module) -> None:
    """Checks that the weight is a parameter, and no other layer's."""
    if parametrize.is_parametrized(module, "weight"):
        own = {id(parameter) for parameter in module.get_submodule("parametrizations.weight").parameters()}
    elif isinstance(weight := dict(module.named_parameters(recurse=False)).get("weight"), nn.Parameter):
        own = {id(weight)}
    else:
        raise NotSubbitError("weight is no parameter: something computes it (remove_weight_norm gives it back)")
    for other, another in model.named_modules():
        inside = other == name or other.startswith(f"{name}.parametrizations")
        if not inside and own & {id(parameter) for parameter in another.parameters(recurse=False)}:
            raise NotSubbitError(f"{other} has the same weight")


def _unwanted(found: Mapping[str, nn.Conv2d | nn.Linear], layers: Layers | None) -> dict[str, str]:
    """Why each of the layers that are not to be compressed is not."""
    if layers is None:
        first = next((name for name, module in found.items() if isinstance(module, nn.Conv2d)), None)
        reasons = {name: _why_not_by_default(module, is_first=name == first) for name, module in found.items()}
        return {name: reason for name, reason in reasons.items() if reason}
    if callable(layers):
        wanted = {name for name, module in found.items() if layers(name, module)}
    else:
        if isinstance(layers, str):
            raise TypeError(f"layers must be an iterable of names, got the string {layers!r}: put it into a list")
        wanted = {name for pattern in layers for name in _matching("layers", pattern, found)}
    return {name: "not among the layers given" for name in found if name not in wanted}


def _why_not_by_default(module: nn.Conv2d | nn.Linear, *, is_first: bool) -> str:
    if isinstance(module, nn.Linear):
        return "linear layers stay in full precision unless named"
    if is_first:
        return "the first convolution stays in full precision unless named"
    if module.in_channels <= FEW_CHANNELS:
        return f"{module.in_channels} input channels: stays in full precision unless named"
    if module.groups > 1 and module.groups == module.in_channels:
        return "depthwise: one kernel an output, so no responses to share; stays unless named"
    return ""


def _matching(argument: str, pattern: str, found: Iterable[str]) -> list[str]:
    """The layers that a name or pattern names; raises if there is none."""
    if not isinstance(pattern, str):
        raise TypeError(f"{argument} must have names or patterns, got {type(pattern).__name__}")
    names = [name for name in found if name == pattern or fnmatchcase(name, pattern)]
    if not names:
        raise ValueError(f"{argument} must name Conv2d or Linear layers of the model, got {pattern!r}")
    return names


def _taus_given(weights: Mapping[str, _Weight], tau: int | Mapping[str, int] | None) -> dict[str, int]:
    if not isinstance(tau, Mapping):
        assert tau is not None  # _check_goal
        return dict.fromkeys(weights, tau)
    taus: dict[str, int] = {}
    for pattern, bits in tau.items():
        for name in _matching("tau", pattern, weights):
            taus.setdefault(name, bits)
    for name in weights:
        if name not in taus:
            raise ValueError(f"tau must name every layer that is compressed, {name!r} is missing: add '*' at the end")
    return {name: taus[name] for name in weights}


def _taus_within_bits(weights: Mapping[str, _Weight], max_bits: float) -> dict[str, int]:
    """Begins with tau = 1 and gives the worst layer a bit more, as long as one fits.

    So the largest error becomes as small as it can. The sum of squared errors would be another goal; but it decreases
    nearly in proportion to the bits (random weights, k-means), so that some layers got tau = 5 and their like tau = 1.
    """
    taus = dict.fromkeys(weights, 1)
    total = sum(weight.dense.numel() for weight in weights.values())
    left = max_bits * total - sum(weight.units for weight in weights.values())
    if left < 0:
        least = max_bits - left / total
        raise ValueError(f"max_bits must be at least {least:.3f}, which tau = 1 takes in these layers, got {max_bits}")
    while True:
        errors = {
            name: weights[name].relative_error(bits)
            for name, bits in taus.items()
            if bits < codebooks.MAX_TAU and weights[name].units <= left and weights[name].error(bits) > 0
        }
        if not errors:
            return taus
        worst = max(errors, key=errors.__getitem__)
        taus[worst] += 1
        left -= weights[worst].units


def _taus_within_error(weights: Mapping[str, _Weight], max_error: float, why: dict[str, str]) -> dict[str, int]:
    taus: dict[str, int] = {}
    for name, weight in weights.items():
        enough = (bits for bits in range(1, codebooks.MAX_TAU + 1) if weight.error(bits) <= max_error)
        if bits := next(enough, None):
            taus[name] = bits
        else:
            why[name] = f"error {weight.error(codebooks.MAX_TAU):.1%} at tau {codebooks.MAX_TAU}, over max_error"
    return taus


def _replace(name: str, module: nn.Conv2d | nn.Linear, weight: _Weight, tau: int) -> LayerReport:
    """Puts the sub-bit weight into the layer; gives its entry of the report."""
    approximation, unfit = weight.approximate(tau)
    error = weight.error_of(approximation)  # before its memory, which may be the layer's, is written to
    if parametrize.is_parametrized(module, "weight"):
        # It deletes the class's property. The class was made for the module but is the given model's too.
        own = type(module)
        module.__class__ = type(own.__name__, own.__bases__, dict(vars(own)))
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    shape = tuple(module.weight.shape)
    module.weight.copy_(approximation.reshape(shape))
    return LayerReport.of_weight(
        name,
        shape,
        recognize(module.weight, module.bias),
        None,
        why=f"{unfit} channels no codewords fit: scale nearly 0" if unfit else "",
        error=error,
    )


def _notes(weights: Mapping[str, _Weight], taus: Mapping[str, int]) -> tuple[str, ...]:
    if not taus:
        return ()
    index_bits = sum(bits * weights[name].units for name, bits in taus.items())
    bits = index_bits / sum(weights[name].dense.numel() for name in taus)
    return (f"Indices take {bits:.3f} bits per weight in the layers converted.", _UNTRAINED)
