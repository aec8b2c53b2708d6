"""Sub-bit layers in ONNX files: packed in the file, run by any ONNX runtime, or by our kernels.

Needs ``pip install subbit-infer[onnx]``; import it as ``subbit_infer.onnx``.
"""

from importlib.util import find_spec

for _package in ("onnx", "onnxruntime", "onnxscript"):
    if find_spec(_package) is None:
        raise ImportError(f"subbit_infer.onnx needs the package {_package}: pip install subbit-infer[onnx]")

from subbit_infer.onnx.exporting import export
from subbit_infer.onnx.rewrite import convert

__all__ = ["convert", "export"]
