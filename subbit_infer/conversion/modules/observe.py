"""Observes the convolutions and linear layers that a model computes, with their weights and modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from subbit_infer.conversion.detection import NotSubbitError, recognize
from subbit_infer.conversion.modules.signs import Signs
from subbit_infer.core import cost
from subbit_infer.core.sizes import pair
from subbit_infer.nn import SubbitConv2d, SubbitLinear


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, and random numbers as if nothing had been drawn."""
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    with cost.evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        yield


def run(model: nn.Module, example_input: Any) -> None:
    """Runs the model on a copy of its input, which it may change."""
    given = example_input if isinstance(example_input, tuple) else (example_input,)
    model(*(x.detach().clone() if isinstance(x, Tensor) else x for x in given))


@dataclass
class Call:
    """One 2-d convolution or linear layer that was computed.

    Attributes:
        kind: "conv2d" or "linear".
        x: its input, as are output; both None where the module computes more than one, so that memory is free.
        weight: a copy of it, since code may binarize a weight in place and put it back.
        bias: a copy of it, or None.
        geometry: stride, padding, dilation and groups by name; empty of a linear layer.
        output: what it gave; in a probe a copy, as is x.
    """

    kind: str
    x: Tensor | None
    weight: Tensor
    bias: Tensor | None = None
    geometry: dict[str, Any] = field(default_factory=dict)
    output: Tensor | None = None


@dataclass
class Frame:
    """One call of a module.

    Attributes:
        module: what is called.
        calls: what was computed in it and in none of its submodules.
        has_inner: whether a submodule computed some.
        version: of its first argument when it began, which counts changes.
    """

    module: nn.Module
    calls: list[Call] = field(default_factory=list)
    has_inner: bool = False
    version: int | None = None


OnExit = Callable[[Frame, tuple[Any, ...], dict[str, Any], Any], None]


class Observer:
    """Follows a run of a model; see :meth:`watch`.

    Attributes:
        signs: which tensors come from signs.
    """

    def __init__(self) -> None:
        self.signs = Signs()
        self._frames: list[Frame] = []
        self._asleep = 0  # calls are not recorded: they are ours, or belong to one that is
        self._probing = False

    @contextmanager
    def watch(self, model: nn.Module, on_exit: OnExit) -> Iterator[None]:
        """While it is entered, calls ``on_exit`` after each call of a module that computes something itself.

        ``on_exit`` gets the frame, the arguments and the output, while all tensors are still there.
        """

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del kwargs
            self._frames.append(Frame(module, version=version(args[0]) if args else None))

        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            frame = self._frames.pop()
            is_ours = isinstance(module, SubbitConv2d | SubbitLinear)
            if self._frames:
                self._frames[-1].has_inner |= bool(frame.calls) or frame.has_inner or is_ours
            if frame.calls and not is_ours and not self._probing:
                with self.asleep():
                    on_exit(frame, args, kwargs, output)

        with ExitStack() as stack:
            for module in model.modules():
                if not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                    stack.callback(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True).remove)
                    # Called after failures too, which a model may catch.
                    hook = module.register_forward_hook(leave, with_kwargs=True, always_call=True)
                    stack.callback(hook.remove)
            stack.enter_context(_Operators(self))
            stack.enter_context(self.signs)
            stack.enter_context(_Functions(self))
            yield

    def probe(self, module: nn.Module, x: Tensor) -> tuple[Frame, Any]:
        """What a module that is being watched computes, and gives, for another input."""
        frames, asleep = self._frames, self._asleep
        self._frames, self._asleep, self._probing = [Frame(module)], 0, True
        try:
            output = module.forward(x)
            return self._frames[0], output
        finally:
            self._frames, self._asleep, self._probing = frames, asleep, False

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """While it is entered, nothing is recorded."""
        self._asleep += 1
        try:
            yield
        finally:
            self._asleep -= 1

    @property
    def is_awake(self) -> bool:
        """Whether calls are recorded."""
        return not self._asleep and bool(self._frames)

    def record(self, call: Call, compute: Callable[[], Any]) -> Any:
        """Computes it and keeps it in the frame of the innermost module."""
        call.weight = call.weight.detach().clone()
        call.bias = None if call.bias is None else call.bias.detach().clone()
        call.x = call.x.clone() if self._probing and call.x is not None else call.x
        with self.asleep():
            output = compute()
        call.output = output.clone() if self._probing else output
        calls = self._frames[-1].calls
        calls.append(call)
        if len(calls) > 1:
            for one in calls:
                one.x = one.output = None
        return output


def version(value: Any) -> int | None:
    """What counts the changes of a tensor, where something does."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


class _Functions(TorchFunctionMode):
    """Sees F.conv2d and F.linear as they are called."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        make = {F.conv2d: _conv2d, F.linear: _linear}.get(func) if self._observer.is_awake else None
        if make is None:
            return func(*args, **kwargs)
        return self._observer.record(make(*args, **kwargs), lambda: func(*args, **kwargs))


class _Operators(TorchDispatchMode):
    """Sees convolutions and matrix products that were reached otherwise."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._observer = observer

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        make = _OPERATORS.get(func) if self._observer.is_awake else None
        call = make(*args, **kwargs) if make is not None else None
        if call is None:
            return func(*args, **kwargs)
        return self._observer.record(call, lambda: func(*args, **kwargs))


def _conv2d(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Call:
    return Call("conv2d", input, weight, bias, geometry_of(stride, padding, dilation, groups))


def geometry_of(stride: Any, padding: Any, dilation: Any, groups: int) -> dict[str, Any]:
    """What a convolution is called with, as a SubbitConv2d takes it."""
    return {
        "stride": _pair(stride),
        "padding": padding if isinstance(padding, str) else _pair(padding),
        "dilation": _pair(dilation),
        "groups": groups,
    }


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call:  # noqa: A002
    return Call("linear", input, weight, bias)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *rest: Any,
) -> Call | None:
    is_2d = weight.dim() == 4 and not transposed
    return _conv2d(x, weight, bias, stride, padding, dilation, rest[-1]) if is_2d else None


def _mm(x: Tensor, weight: Tensor) -> Call | None:
    """A product of matrices is a linear layer where its second factor is a sub-bit weight; else it may be anything."""
    try:
        recognize(weight.t())
    except NotSubbitError:
        return None
    return Call("linear", x, weight.t())


def _addmm(bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Call | None:
    call = _mm(x, weight)
    if call is not None and bias.dim() == 1 and beta == alpha == 1:
        call.bias = bias
    return call


_OPERATORS: dict[Any, Callable[..., Call | None]] = {
    torch.ops.aten.convolution.default: _convolution,
    torch.ops.aten.mm.default: _mm,
    torch.ops.aten.addmm.default: _addmm,
}


def _pair(value: Any) -> tuple[int, int]:
    rows, columns = pair(value if isinstance(value, tuple | list) else int(value))
    return int(rows), int(columns)
