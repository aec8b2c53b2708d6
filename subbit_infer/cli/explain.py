"""``subbit explain``: what runs where, and why."""

from __future__ import annotations

from subbit_infer.cli.screen import Json, UsageError, show, working
from subbit_infer.cli.sources import (
    Device,
    Inputs,
    Model,
    Source,
    device_of,
    example_inputs,
    has_subbit_layers,
    read_module,
)
from subbit_infer.diagnostics.plans import explain as explain_model


def explain(
    source: Source, model: Model = None, inputs: Inputs = None, device: Device = "cpu", json: Json = False
) -> None:
    """Show which kernel each sub-bit layer runs for such an input, and why; a dense model is converted first."""
    example = example_inputs(inputs)
    if example is None:
        raise UsageError("explain needs --input, as --input 1x3x224x224")
    target = device_of(device)
    module = read_module(source, model)
    if not has_subbit_layers(module):
        from subbit_infer.conversion.model import convert

        with working("Converting"):
            module = convert(module, example).model
    with working("Running"):
        on_device = tuple(x.to(target) for x in example)
        explanation = explain_model(module.to(target), on_device, print=None)
    show(explanation.to_dict(), explanation, as_json=json)
