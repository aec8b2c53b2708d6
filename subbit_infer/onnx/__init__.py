"""Sub-bit layers in ONNX files: packed in the file, run by any ONNX runtime, or by our kernels.

Needs ``pip install subbit-infer[onnx]``; import it as ``subbit_infer.onnx``.
"""

try:
    import onnx as _onnx
    import onnxruntime as _onnxruntime
except ImportError as _error:
    raise ImportError(f"subbit_infer.onnx needs {_error.name}: pip install subbit-infer[onnx]") from _error

from subbit_infer.onnx.rewrite import convert

__all__ = ["convert"]
