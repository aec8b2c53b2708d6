// The Python module subbit_infer._C_cuda: checks what it is given, releases the GIL, launches. Tensors arrive as
// addresses, sizes and strides (in elements), the stream as torch's raw handle, so nothing here depends on torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "cuda/launch.h"

namespace py = pybind11;

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "Compiled CUDA kernels of subbit_infer.";
  m.attr("architectures") = std::vector<int>{SUBBIT_CUDA_ARCHITECTURES};
}
