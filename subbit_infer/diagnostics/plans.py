"""What runs where, and why: the planner's answers for the layers of a model, as a table."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch

from subbit_infer import backends
from subbit_infer.backends import cpu, native
from subbit_infer.core import cost
from subbit_infer.core.tables import Table, Tabular, as_json, show
from subbit_infer.nn import SubbitConv2d, SubbitLinear

if TYPE_CHECKING:  # imported where a device is, or may be, a CUDA device
    from subbit_infer.backends.cuda.planner import Planned

_SHARING = ("rows", "patches", "sharing", "sparse")
_LOOK_UP = 64  # outputs of a look-up of the plan "patches", and the most codewords


@dataclass(frozen=True)
class Candidate:
    """A way to run a layer.

    Attributes:
        plan: "rows", "patches", "bits" or "dense"; on a GPU "sharing", "product", "sparse" or "dense".
        kernel: the compiled kernel; None for "dense", which is torch's.
        level: the level of the kernel, or the GPU's architecture; None for "dense".
        microseconds: what it is predicted to take for an image: on one thread; on a GPU the batch's time by images.
    """

    plan: str
    kernel: str | None
    level: str | None
    microseconds: float


@dataclass(frozen=True)
class LayerPlan:
    """One call of a layer.

    Attributes:
        name: the layer's name in the model; its class where it is the model.
        input_shape: of the call; of packed activations the shape they stand for.
        output_shape: the same.
        unit: (g, kh, kw), what an index names.
        codewords: size of the codebook.
        tau: bits of an index.
        activation_bits: 1 or 32.
        device: the type of device that it ran on, "cpu" or "cuda" or another.
        plan: what ran, and will run again: a candidate's, or "reference".
        kernel: the compiled kernel; None for "dense" and "reference", which are torch's.
        level: the level of that kernel, or the GPU's architecture.
        candidates: every way to run it, the quickest first; none for "reference".
        reason: why it is this plan, in words.
        macs: multiply-adds of the dense convolution, for an image.
        macs_saved: those that sharing saves, counted as the paper counts Bit-OPs (:mod:`subbit_infer.cost`).
    """

    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    unit: tuple[int, int, int]
    codewords: int
    tau: int
    activation_bits: int
    device: str
    plan: str
    kernel: str | None
    level: str | None
    candidates: tuple[Candidate, ...]
    reason: str
    macs: int
    macs_saved: float

    def microseconds(self, plan: str | None = None) -> float | None:
        """What the plan that runs, or another, is predicted to take; None where it is no candidate."""
        wanted = self.plan if plan is None else plan
        return next((c.microseconds for c in self.candidates if c.plan == wanted), None)


@dataclass(frozen=True, repr=False)
class Explanation(Tabular):
    """What :func:`explain` found. It prints as a table, and shows as one in notebooks.

    Attributes:
        model: the class of what was explained.
        level: the level that kernels on the CPU may have: the machine's, or what ``SUBBIT_ISA`` lowers it to.
        gpus: names and architectures of the GPUs that kernels ran on.
        wanted_plan: what ``SUBBIT_PLAN`` asks for, or "".
        layers: one entry a call, in order.
        not_called: names of sub-bit layers that the model did not call.
    """

    model: str
    level: str
    gpus: tuple[str, ...]
    wanted_plan: str
    layers: tuple[LayerPlan, ...]
    not_called: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as dicts, lists, strings and numbers, for JSON; predicted times are those of candidates."""
        return as_json(self)

    def __repr__(self) -> str:
        return f"<Explanation of {self.model}: {_calls(len(self.layers))}; print it for the table>"

    def _parts(self) -> Iterator[str | Table]:
        wanted = f", SUBBIT_PLAN={self.wanted_plan}" if self.wanted_plan else ""
        yield f"{self.model}: {_calls(len(self.layers))}, {self._where()}{wanted}"
        headings = ("layer", "input", "output", "unit", "tau", "act", "kernel", "predicted us", "saved MACs", "why")
        yield Table(headings, [_row(layer) for layer in self.layers], right={"tau", "act"})
        if self.not_called:
            yield f"Never called with this input: {', '.join(self.not_called)}."
        yield from self._total()

    def _where(self) -> str:
        on_cpu = [f"level {self.level}"] if not self.gpus or any(at.device == "cpu" for at in self.layers) else []
        return ", ".join([*on_cpu, *self.gpus])

    def _total(self) -> list[str]:
        planned = [layer for layer in self.layers if layer.candidates]
        lines = []
        for device, how in (("cpu", "on one thread"), ("cuda", "on the GPU (calculated, not measured)")):
            there = [layer for layer in planned if layer.device == device]
            if there:
                ours, dense = (sum(layer.microseconds(plan) or 0 for layer in there) for plan in (None, "dense"))
                lines.append(f"Predicted, an image {how}: {ours / 1e3:.3g} ms; all dense {dense / 1e3:.3g} ms.")
        left_out = len(self.layers) - len(planned)
        if lines and left_out:
            lines[-1] = f"{lines[-1][:-1]}; without {left_out} by the reference."
        return lines


class _Seen(NamedTuple):
    """What a layer was called with, and the kernel that has run."""

    name: str
    layer: SubbitConv2d | SubbitLinear
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    device: torch.device
    kernel: str | None  # of the CPU
    on_gpu: Planned | None


def explain(
    module: torch.nn.Module,
    example_input: Any,
    *,
    print: Callable[[str], object] | None = print,  # noqa: A002
) -> Explanation:
    """Prints what runs where and why, for every sub-bit layer of a model, and returns it.

    The model is run once, in evaluation mode and without gradients, and left as it was. Predicted times are the
    planner's: microseconds for one image on one thread of the machine that its model was fitted on, good to tell
    plans from each other. (The vectors that a linear layer is given are the pixels of one image.)

    Args:
        module: a :class:`~subbit_infer.nn.SubbitConv2d`, a :class:`~subbit_infer.nn.SubbitLinear`, or any module that
            holds some. Calls of :func:`subbit_infer.conv` that are not a layer's are not seen.
        example_input: its input; a tuple is its positional arguments.
        print: what is called with the table; None for nothing.

    Returns:
        The same as data. In a notebook it shows as one line, so the table is not there twice.

    Raises:
        TypeError: ``module`` is no module, or does not take such an input.
        ValueError: there is no sub-bit layer, the input does not fit, or ``SUBBIT_PLAN`` or ``SUBBIT_ISA`` is wrong.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    model = type(module).__name__
    layers = {
        layer: name or model for name, layer in module.named_modules() if isinstance(layer, SubbitConv2d | SubbitLinear)
    }
    if not layers:
        raise ValueError(f"module must be or hold a SubbitConv2d or SubbitLinear, got {model} without any")
    level, wanted = native.active_level(), native.wanted_plan()
    seen = _run(module, example_input, layers)
    called = {one.layer for one in seen}
    gpus = {_gpu(one.device): None for one in seen if one.on_gpu is not None}
    explanation = Explanation(
        model,
        level,
        tuple(gpus),
        wanted,
        tuple(_plan(one, level, wanted) for one in seen),
        tuple(name for layer, name in layers.items() if layer not in called),
    )
    if print is builtins.print:
        show(explanation)
    elif print is not None:
        print(str(explanation))
    return explanation


def _run(module: torch.nn.Module, example_input: Any, layers: dict[SubbitConv2d | SubbitLinear, str]) -> list[_Seen]:
    """Every call of the layers in one run of the module."""
    seen: list[_Seen] = []

    def record(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = args[0] if args else kwargs["x"]
        y = output[0] if isinstance(output, tuple) else output
        given, made = tuple(x.shape), tuple(y.shape)
        kernel = on_gpu = None
        backend = backends.backend_of(x.device, layer.unit)
        if backend is cpu:
            kernel = cpu.prepare(*_weight_of(layer)).last_kernel(_sizes(layer, made))
        elif backend is not None:
            from subbit_infer.backends.cuda import convolution

            weight = convolution.find_prepared(*_weight_of(layer))
            on_gpu = None if weight is None else convolution.last_planned(weight, _sizes(layer, made))
        seen.append(_Seen(layers[layer], layer, given, made, x.device, kernel, on_gpu))

    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    with ExitStack() as stack:
        stack.enter_context(cost.evaluating(module))
        # Not inference mode: what a model keeps from this call would be of no use to one with gradients.
        stack.enter_context(torch.no_grad())
        for layer in layers:
            stack.callback(layer.register_forward_hook(record, prepend=True, with_kwargs=True).remove)
        try:
            module(*arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"example_input must be an input of {type(module).__name__}: {error}") from error
    return seen


def _gpu(device: torch.device) -> str:
    from subbit_infer.backends.cuda import device as cuda_device

    facts = cuda_device.device_of(device)
    return f"{facts.name} (sm_{facts.capability})"


def _weight_of(layer: SubbitConv2d | SubbitLinear) -> tuple[Any, ...]:
    return layer.packed_indices, layer.packed_codebook, layer.units, layer.codewords, layer.unit


def _sizes(layer: SubbitConv2d | SubbitLinear, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The output (N, C_out, H_out, W_out) that kernels see: vectors of a linear layer are pixels of one image."""
    if isinstance(layer, SubbitConv2d):
        return shape if len(shape) == 4 else (1, *shape)  # type: ignore[return-value]
    vectors = math.prod(shape) // layer.out_features
    return (1, layer.out_features, 1, vectors) if vectors else (0, layer.out_features, 1, 1)


def _plan(seen: _Seen, level: str, wanted: str) -> LayerPlan:
    layer = seen.layer
    _, outputs, height, width = _sizes(layer, seen.output_shape)
    groups, spread, input_pixels = 1, 1, height * width
    if isinstance(layer, SubbitConv2d):
        groups, spread = layer.groups, max(_most(layer.stride), _most(layer.dilation))
        input_pixels = math.prod(seen.input_shape[-2:])
    in_channels = layer.units * layer.unit[0] * groups
    shape = cost.ConvShape(in_channels, outputs, layer.unit[1:], max(height, 1), max(width, 1), groups)
    macs = shape.weights * height * width
    device = seen.device.type
    facts = (seen.name, seen.input_shape, seen.output_shape, layer.unit, layer.codewords, layer.tau)
    bits = cast("Literal[1, 32]", layer.activation_bits)

    def by(plan: str, found: Sequence[Candidate], reason: str) -> LayerPlan:
        ran = next((c for c in found if c.plan == plan), Candidate(plan, None, None, 0))
        saved = 0.0
        if plan in _SHARING and macs:
            saved = macs - cost.layer_cost(shape, weights=layer.tau, activation_bits=bits).bit_ops / bits
        return LayerPlan(*facts, bits, device, plan, ran.kernel, ran.level, tuple(found), reason, macs, saved)

    if backends.backend_of(seen.device, layer.unit) is None:
        return by("reference", (), f"reference: {_why_not(layer, seen.device)}")
    if device == "cuda":
        return by(*_on_gpu(seen, wanted, outputs // groups))

    def candidates(at: str) -> tuple[Candidate, ...]:
        found = native.candidates(
            layer.activation_bits == 1, native.UNITS[layer.unit], layer.codewords, layer.units, outputs // groups,
            groups, spread, height * width, input_pixels, at,
        )  # fmt: skip
        return tuple(Candidate(c["plan"], c.get("kernel"), c.get("level"), c["nanoseconds"] / 1e3) for c in found)

    found = candidates(level)
    if seen.kernel not in {c.kernel for c in found}:  # planned when SUBBIT_ISA was another
        found = candidates(next(of for name, of, _ in native.kernels() if name == seen.kernel))
    ran = next(c for c in found if c.kernel == seen.kernel)
    if ran is found[0]:
        reason = _reason(ran.plan, found, outputs // groups, layer.codewords)
    else:
        reason = _not_the_quickest(ran, found[0], wanted)
    return by(ran.plan, found, reason + _unmet(wanted, ran, found))


def _why_not(layer: SubbitConv2d | SubbitLinear, device: torch.device) -> str:
    """Why there is no kernel."""
    if layer.unit not in native.UNITS:
        return f"no kernel for units of {layer.unit}"
    from subbit_infer.backends.cuda import runtime

    return str(runtime.reason()) if device.type == "cuda" else f"no kernel for the device {device.type}"


def _on_gpu(seen: _Seen, wanted: str, outputs: int) -> tuple[str, Sequence[Candidate], str]:
    """The plan that ran on a GPU, all there were, and why it is that one."""
    planned = seen.on_gpu
    if planned is None:
        return "reference", (), "reference: nothing to compute"
    from subbit_infer.backends.cuda import device as cuda_device

    level = f"sm_{cuda_device.device_of(seen.device).capability}"
    found = []
    for plan, microseconds in planned.candidates:
        kernel = None if plan == "dense" else f"cuda_{plan}"
        found.append(Candidate(plan, kernel, None if plan == "dense" else level, microseconds / planned.shape.sizes[0]))
    ran = next(c for c in found if c.plan == planned.plan)
    if ran is not found[0]:
        reason = _not_the_quickest(ran, found[0], wanted)
    else:
        why = {
            "sharing": f"responses shared by {outputs} outputs over {seen.layer.codewords} codewords",
            "product": "tensor cores multiply the decoded signs",
            "sparse": f"tensor cores share responses of {seen.layer.codewords} codewords among {outputs} outputs",
            "dense": "cuDNN is expected to be quicker with the decoded weight",
        }[ran.plan]
        others = [f"{c.plan} would take {_times(c.microseconds / ran.microseconds)}" for c in found[1:]]
        reason = "; ".join([f"{ran.plan}: {why}", *others])
    return ran.plan, found, reason + _unmet(wanted, ran, found)


def _most(value: int | tuple[int, ...]) -> int:
    return max(value) if isinstance(value, tuple | list) else value


def _is_asked_for(plan: str, wanted: str) -> bool:
    return plan == wanted or (wanted == "sharing" and plan in ("rows", "patches"))


def _unmet(wanted: str, ran: Candidate, found: Sequence[Candidate]) -> str:
    """Why ``SUBBIT_PLAN`` is not what ran."""
    if not wanted or _is_asked_for(ran.plan, wanted):
        return ""
    is_there = any(_is_asked_for(c.plan, wanted) for c in found)
    return f"; SUBBIT_PLAN={wanted} " + ("came after its plan" if is_there else "has no kernel for it")


def _reason(plan: str, found: Sequence[Candidate], outputs: int, codewords: int) -> str:
    """Why the quickest plan is that."""
    others = {c.plan: c.microseconds / found[0].microseconds for c in found[1:]}
    dense = f"; dense would take {_times(others['dense'])}" if "dense" in others else ""
    if plan == "rows":
        return f"rows: responses shared by {outputs} outputs over {codewords} codewords{dense}"
    if plan == "patches":
        return (
            f"patches: responses of {codewords} codewords looked up for {_LOOK_UP} of {outputs} outputs at once{dense}"
        )
    if plan == "bits":
        why = "matching 64 channels at once is quicker than sharing"
        if "patches" not in others:
            why = f"{codewords} codewords do not fit a look-up of {_LOOK_UP}"
        elif outputs < _LOOK_UP:
            why = f"{outputs} outputs do not fill a look-up of {_LOOK_UP}"
        return f"bits: {why}{dense}"
    next_best = found[1]
    return (
        f"dense: {outputs} outputs share too little over {codewords} codewords; "
        f"{next_best.plan} would take {_times(others[next_best.plan])}"
    )


def _not_the_quickest(ran: Candidate, quickest: Candidate, wanted: str) -> str:
    text = f"{quickest.plan} would take {_times(quickest.microseconds / ran.microseconds)}"
    if wanted and _is_asked_for(ran.plan, wanted):
        return f"{ran.plan}: forced by SUBBIT_PLAN={wanted}; {text}"
    return f"{ran.plan}: planned when SUBBIT_PLAN was another; {text}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 0.95 else f"{ratio:.2g}x"


def _calls(number: int) -> str:
    return f"{number} call{'s' * (number != 1)} of sub-bit layers"


def _row(layer: LayerPlan) -> tuple[str, ...]:
    return (
        layer.name,
        "x".join(map(str, layer.input_shape)),
        "x".join(map(str, layer.output_shape)),
        "x".join(map(str, layer.unit)),
        str(layer.tau),
        str(layer.activation_bits),
        layer.kernel or "torch",
        ", ".join(f"{c.plan} {c.microseconds:.0f}" for c in layer.candidates),
        f"{layer.macs_saved / 1e6:.1f}M of {layer.macs / 1e6:.1f}M",
        layer.reason,
    )
