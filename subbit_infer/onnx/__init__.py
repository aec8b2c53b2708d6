"""Sub-bit layers in ONNX files: packed in the file, run by any ONNX runtime, or by our kernels.

Needs ``pip install subbit-infer[onnx]``; import it as ``subbit_infer.onnx``.

What was measured, for a ResNet-18 of 224x224 images on one thread (ONNX Runtime 1.32, onnxruntime-extensions 0.15.2):
TABLE
"""

try:
    from subbit_infer.onnx.exporting import export
    from subbit_infer.onnx.program import Program, load
    from subbit_infer.onnx.rewrite import convert
    from subbit_infer.onnx.sessions import session
except ModuleNotFoundError as error:
    if (error.name or "").startswith("subbit_infer"):
        raise
    raise ImportError(f"subbit_infer.onnx needs {error.name}: pip install subbit-infer[onnx]") from error

__all__ = ["Program", "convert", "export", "load", "session"]
