"""What the planner predicts for a GPU, without one: `python benchmarks/gpu_predictions.py`; docs/gpu.md has the table.

Milliseconds of ResNet-18's sixteen 3x3 layers at batch 256 on an H100, by each plan and by the planner's choice of one
for each layer. It is arithmetic (csrc/cuda/planner/select.cpp), not measured.
"""

from dataclasses import dataclass
from typing import Any

from gpu_tables import PLANS, plans_for
from grid import Grid
from layers import RESNET18, Layer
from subbit_infer.backends import native

H100: dict[str, Any] = {"capability": 90, "multiprocessors": 132}
BATCH = 256
FLOAT32, FLOAT16 = range(2)


@dataclass(frozen=True)
class Case:
    """A way to call the layers; options are those of the planner that are not usual."""

    name: str
    element: int
    tau: int
    binary: bool
    options: dict[str, bool]


PACKED = {"packed_input": True, "packed_output": True, "float_output": False, "has_zeros": False}
CASES = (
    Case("float32 with an epilogue, tau 5", FLOAT32, 5, False, {}),
    Case("the same, tau 3", FLOAT32, 3, False, {}),
    Case("the same, tau 2", FLOAT32, 2, False, {}),
    Case("float16 with an epilogue, tau 5", FLOAT16, 5, False, {"is_channels_last": True}),
    Case("the same, tau 3", FLOAT16, 3, False, {"is_channels_last": True}),
    Case("the same, tau 2", FLOAT16, 2, False, {"is_channels_last": True}),
    Case(
        "float16, nothing follows, tau 5",
        FLOAT16,
        5,
        False,
        {"is_channels_last": True, "epilogue_commutes_with_rounding": True},
    ),
    Case("signs of float16, float16 out, tau 5", FLOAT16, 5, True, {"is_channels_last": True}),
    Case("signs, packed in and out, tau 5", FLOAT32, 5, True, PACKED),
)
USUAL: dict[str, Any] = {
    "has_zeros": True,
    "is_channels_last": False,
    "packed_input": False,
    "packed_output": False,
    "float_output": True,
    "epilogue_commutes_with_rounding": False,
}


def milliseconds(case: Case, layer: Layer) -> dict[str, float]:
    """What a layer is predicted to take, by plan."""
    side = (layer.side - 1) // layer.stride + 1
    found = native.cuda_candidates(
        binary=case.binary,
        element=case.element,
        unit=native.UNITS[layer.unit],
        codewords=2**case.tau,
        units=layer.c_in,
        outputs=layer.c_out,
        groups=1,
        batch=BATCH,
        pixels=side**2,
        out_width=side,
        input_pixels=layer.side**2,
        routes=[plan for plan in plans_for(case.tau, case.binary) if plan != "dense"],
        **H100,
        **(USUAL | case.options),
    )
    return {one["plan"]: one["microseconds"] / 1e3 for one in found}


def table() -> Grid:
    """Every case."""
    grid = Grid("Predicted for an H100, ms", ["", *(f"`{plan}`" for plan in PLANS), "chosen"])
    for case in CASES:
        layers = [(milliseconds(case, layer), count) for layer, count in RESNET18.items()]
        has = [plan for plan in PLANS if plan in layers[0][0]]
        totals = {plan: sum(ms[plan] * count for ms, count in layers) for plan in has}
        chosen = sum(min(ms.values()) * count for ms, count in layers)
        cells = [f"{totals[plan]:.2g}" if plan in totals else "" for plan in PLANS]
        grid.rows.append([case.name, *cells, f"{chosen:.2g}"])
    return grid


if __name__ == "__main__":
    print(table().markdown())
