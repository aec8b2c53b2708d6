"""``subbit_infer.onnx``: see :mod:`subbit_infer.formats.onnx`."""

from subbit_infer.formats.onnx import Program, convert, export, load, session

__all__ = ["Program", "convert", "export", "load", "session"]
