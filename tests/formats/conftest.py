"""Where files are written, and ONNX files converted."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "m.safetensors"


@pytest.fixture
def saved(tmp_path):
    """Saves an ONNX model and converts it; gives both files and the report."""
    import onnx

    import subbit_infer.onnx as subbit_onnx

    def convert(model):
        onnx.save(model, tmp_path / "dense.onnx")
        report = subbit_onnx.convert(tmp_path / "dense.onnx", tmp_path / "subbit.onnx")
        onnx.checker.check_model(onnx.load(tmp_path / "subbit.onnx"), full_check=True)
        return tmp_path / "dense.onnx", tmp_path / "subbit.onnx", report

    return convert
