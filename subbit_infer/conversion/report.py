"""Reports of convert and compress: what each layer became, or why it stayed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from subbit_infer.core.tables import Table, Tabular, as_json
from subbit_infer.core.weight import PackedWeight

Model = TypeVar("Model")


@dataclass(frozen=True)
class LayerReport:
    """One convolution or linear layer.

    Attributes:
        name: of the layer in the model, or of the node in a graph.
        shape: of its dense weight: (C_out, C_in / groups, kh, kw), or (C_out, C_in).
        unit: (g, kh, kw), the part of the weight that one index stands for; None if the layer was skipped, and so are
            the next five.
        tau: bits per index.
        codewords: size of the codebook.
        activation_bits: 1 for binary activations, else 32; None also if only weights were examined.
        has_scale: whether outputs are multiplied by a scale.
        nbytes: bytes of the packed weight: indices, codebook, scale and bias.
        why: why it was skipped, or a remark; empty if there is none.
        error: of compress: the fraction of changed signs for binary weights, else ``|new - old| / |old|`` of the
            weight; None if nothing was approximated.
    """

    name: str
    shape: tuple[int, ...]
    unit: tuple[int, int, int] | None = None
    tau: int | None = None
    codewords: int | None = None
    activation_bits: int | None = None
    has_scale: bool | None = None
    nbytes: int | None = None
    why: str = ""
    error: float | None = None

    @classmethod
    def of_weight(
        cls,
        name: str,
        shape: tuple[int, ...],
        weight: PackedWeight,
        activation_bits: int | None,
        *,
        why: str = "",
        error: float | None = None,
    ) -> LayerReport:
        """The entry of a layer that now holds a packed weight."""
        return cls(
            name,
            shape,
            weight.unit,
            weight.tau,
            weight.codewords,
            activation_bits,
            weight.scale is not None,
            weight.nbytes,
            why,
            error,
        )

    @property
    def is_converted(self) -> bool:
        """Whether it is a sub-bit layer now."""
        return self.unit is not None


@dataclass(frozen=True, repr=False)
class Report(Tabular):
    """Every layer, in order. It prints as a table, and shows as one in notebooks.

    Attributes:
        layers: one entry per layer.
        notes: what else there is to know, one sentence each.
    """

    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def converted(self) -> tuple[LayerReport, ...]:
        """The layers that are sub-bit now."""
        return tuple(layer for layer in self.layers if layer.is_converted)

    @property
    def skipped(self) -> tuple[LayerReport, ...]:
        """The layers that are unchanged."""
        return tuple(layer for layer in self.layers if not layer.is_converted)

    def to_dict(self) -> dict[str, Any]:
        """Everything as dicts, lists, strings and numbers, for JSON."""
        return as_json(self)

    def __repr__(self) -> str:
        return f"<Report: {self._counts()}; print it for the table>"

    def _parts(self) -> Iterator[str | Table]:
        has_error = any(layer.error is not None for layer in self.layers)
        headings = ("layer", "weight", "unit", "tau", "act", "scale", "bytes", *(["error"] if has_error else []), "why")
        rows = [_row(layer, has_error) for layer in self.layers]
        yield Table(headings, rows, right={"tau", "act", "bytes", "error"})
        yield self._counts() + "."
        yield from self.notes

    def _counts(self) -> str:
        total = len(self.layers)
        return f"{len(self.converted)} of {total} layer{'s' * (total != 1)} converted"


class Converted(NamedTuple, Generic[Model]):
    """What convert and compress return; it unpacks as ``model, report = convert(...)``.

    Attributes:
        model: a torch.nn.Module or an ExportedProgram, whichever was given.
        report: what was done to each of its layers.
    """

    model: Model
    report: Report


def _row(layer: LayerReport, has_error: bool) -> tuple[str, ...]:
    shape = "x".join(map(str, layer.shape))
    error = [] if not has_error else ["" if layer.error is None else f"{layer.error:.1%}"]
    if layer.unit is None:
        return (layer.name, shape, "", "", "", "", "", *error, f"skipped: {layer.why}")
    unit, scale = "x".join(map(str, layer.unit)), "yes" if layer.has_scale else "no"
    act = "" if layer.activation_bits is None else str(layer.activation_bits)
    return (layer.name, shape, unit, str(layer.tau), act, scale, str(layer.nbytes), *error, layer.why)
