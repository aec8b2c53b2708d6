"""``subbit explain``: what runs where, and why."""

from __future__ import annotations

from subbit_infer.cli.screen import Json, UsageError, show, working
from subbit_infer.cli.sources import Inputs, Model, Source, example_inputs, has_subbit_layers, read_module
from subbit_infer.explain import explain as explain_model


def explain(source: Source, model: Model = None, inputs: Inputs = None, json: Json = False) -> None:
    """Show which kernel each sub-bit layer runs with such an input, and why; a dense model is converted first."""
    example = example_inputs(inputs)
    if example is None:
        raise UsageError("explain needs --input, as --input 1x3x224x224")
    module = read_module(source, model)
    if not has_subbit_layers(module):
        from subbit_infer.convert import convert

        with working("Converting"):
            module = convert(module, example).model
    with working("Running"):
        explanation = explain_model(module, example, print=None)
    show(explanation.to_dict(), str(explanation), json)
