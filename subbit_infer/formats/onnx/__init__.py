"""Sub-bit layers in ONNX files: packed in the file, run by any ONNX runtime, or by our kernels.

Needs ``pip install subbit-infer[onnx]``; import it as ``subbit_infer.onnx``.

One file works everywhere: its nodes are functions of standard operators, which decode the weights while ONNX Runtime
loads it, and :func:`load` replaces them with our kernels. Milliseconds on one thread of an AMD Zen 4 core (224x224,
batch 1, ONNX Runtime 1.32, onnxruntime-extensions 0.15.2); the last column is what plain ONNX Runtime takes to load the
dense and the converted file::

                             dense   converted, in plain ONNX Runtime   load()   session()   to load
    ResNet-18                 33.5                               33.6     13.5        94.6   160, 400
    ResNet-18, binary         35.8                               36.3      7.8        92.0   130, 390
    ResNet-50                 74.6                               74.6     37.6       532.7   240, 860
    one layer, 64 x 56 x 56   2.19                               2.13     1.01       11.43   5, 4
    one layer, 512 x 7 x 7    2.44                               2.42     0.67        1.89   27, 91

:func:`session` is slow because Python operators of onnxruntime-extensions copy their inputs and return their results as
lists of Python numbers. Such an operator can only be in the domain ``ai.onnx.contrib``, and its attributes can only be
single numbers and strings. There it takes precedence over a function of its name in the file, but Conv has lists as
attributes, so nodes are renamed while the file is loaded. A native library of operators needs ONNX Runtime's C headers,
which its package does not have. The sign of NaN is NaN in plain ONNX Runtime, and 0 in our kernels.
"""

try:
    from subbit_infer.formats.onnx.exporting import export
    from subbit_infer.formats.onnx.program import Program, load
    from subbit_infer.formats.onnx.rewrite import convert
    from subbit_infer.formats.onnx.sessions import session
except ModuleNotFoundError as error:
    if (error.name or "").startswith("subbit_infer"):
        raise
    raise ImportError(f"subbit_infer.onnx needs {error.name}: pip install subbit-infer[onnx]") from error

__all__ = ["Program", "convert", "export", "load", "session"]
