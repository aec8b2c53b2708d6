// The Python module subbit_infer._C_cuda: checks what it is given, releases the GIL, launches. Tensors arrive as
// addresses, sizes and strides (in elements), the stream as torch's raw handle, so nothing here depends on torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/checked.h"
#include "cuda/common/launch.h"
#include "cuda/product/route.h"
#include "python/arguments.h"

namespace py = pybind11;

namespace subbit {
namespace {

cudaStream_t stream_of(std::uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

Element element_of(int number) {
  expect(number >= 0 && number <= static_cast<int>(Element::kBfloat16), "element must be 0 to 2");
  return static_cast<Element>(number);
}

Route route_of(const std::string& name) {
  std::string names;
#define SUBBIT_CUDA_ROUTE(enumerator, route)    \
  if (name == #route) return Route::enumerator; \
  names += (names.empty() ? "" : ", ") + std::string(#route);
#include "cuda/routes.inc"
  throw std::invalid_argument("route must be one of " + names + ", got '" + name + "'");
}

// Runs what starts a kernel with the device current. torch's guard has made it current already and sets it back: this
// tells the CUDA runtime that is linked into this module, which is not torch's.
template <class Start>
void start(const std::string& kernel, int device, const Start& launch_it) {
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = launch_it();
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not find this one's error
  throw std::runtime_error("the kernel " + kernel + " could not be started on CUDA device " + std::to_string(device) +
                           ": " + cudaGetErrorString(error));
}

// A convolution whose sizes are settled.
class Conv {
 public:
  explicit Conv(const CudaParams& params) : params_(params) {}

  bool can_run(const std::string& route) const { return subbit::can_run(route_of(route), params_); }

  // Of the address of x, whose alignment decides whether it is read in place.
  std::int64_t scratch_bytes(const std::string& route, std::uintptr_t x, std::uintptr_t x_nonzero) const {
    CudaOperands operands;
    set_x(operands, x, x_nonzero);
    return subbit::scratch_bytes(route_of(route), params_, operands);
  }

  std::int64_t weight_bytes(const std::string& route) const { return subbit::weight_bytes(route_of(route), params_); }

  void prepare(const std::string& route, int device, std::uintptr_t stream, std::uintptr_t indices,
               std::uintptr_t codebook, std::uintptr_t weight) const {
    const Route chosen = route_of(route);
    const py::gil_scoped_release release;
    start("prepare " + route, device, [&] {
      return subbit::prepare(chosen, params_, pointer<const std::uint32_t>(indices), pointer<const Codeword>(codebook),
                             pointer<void>(weight), stream_of(stream));
    });
  }

  void run(const std::string& route, int device, std::uintptr_t stream, std::uintptr_t x, std::uintptr_t x_nonzero,
           std::uintptr_t indices, std::uintptr_t codebook, std::uintptr_t prepared_weight, std::uintptr_t scale,
           std::uintptr_t bias, std::uintptr_t residual, std::uintptr_t slope, std::uintptr_t shift, std::uintptr_t y,
           std::uintptr_t y_plus, std::uintptr_t y_nonzero, std::uintptr_t pack_shift, std::uintptr_t scratch) const {
    CudaOperands operands;
    set_x(operands, x, x_nonzero);
    operands.indices = pointer<const std::uint32_t>(indices);
    operands.codebook = pointer<const Codeword>(codebook);
    operands.prepared_weight = pointer<const void>(prepared_weight);
    operands.scale = pointer<const float>(scale);
    operands.bias = pointer<const float>(bias);
    operands.residual = pointer<const void>(residual);
    operands.slope = pointer<const float>(slope);
    operands.shift = pointer<const float>(shift);
    operands.y = pointer<void>(y);
    operands.y_plus = pointer<std::uint64_t>(y_plus);
    operands.y_nonzero = pointer<std::uint64_t>(y_nonzero);
    operands.pack_shift = pointer<const float>(pack_shift);
    operands.scratch = pointer<void>(scratch);
    const Route chosen = route_of(route);
    const py::gil_scoped_release release;
    start(route, device, [&] { return launch(chosen, params_, operands, stream_of(stream)); });
  }

 private:
  void set_x(CudaOperands& operands, std::uintptr_t x, std::uintptr_t x_nonzero) const {
    if (params_.conv.x_is_packed) {
      operands.x_plus = pointer<const std::uint64_t>(x);
      operands.x_nonzero = pointer<const std::uint64_t>(x_nonzero);
    } else {
      operands.x = pointer<const void>(x);
    }
  }

  CudaParams params_;
};

Conv make_conv(Unit unit, int codewords, int element, const Quad& x_shape, const std::optional<Quad>& x_strides,
               const Quad& y_shape, const std::optional<Quad>& y_strides, const std::optional<Quad>& residual_strides,
               bool packs, const Pair& stride, const Pair& padding, const Pair& dilation, std::int64_t groups,
               bool binary, bool sign_zero, int activation, int capability) {
  expect(codewords >= 1 && codewords <= kMaxCodewords, "codewords must be 1 to 256");
  CudaParams params;
  params.element = element_of(element);
  params.codewords = codewords;
  params.capability = capability;
  params.conv = conv_problem(unit, x_shape, x_strides, y_shape, y_strides, residual_strides, packs, stride, padding,
                             dilation, groups, binary, sign_zero, activation, 1);
  return Conv(params);
}

void pack_signs(int device, std::uintptr_t stream, std::uintptr_t x, int element, const Quad& shape,
                const Quad& strides, std::uintptr_t shift, std::uintptr_t plus, std::uintptr_t nonzero) {
  checked_product({shape[0], shape[1], shape[2], shape[3]}, "input");
  PackCall call{};
  call.batch = shape[0], call.channels = shape[1], call.height = shape[2], call.width = shape[3];
  call.x_n = strides[0], call.x_c = strides[1], call.x_h = strides[2], call.x_w = strides[3];
  call.element = element_of(element);
  call.x = pointer<const void>(x);
  call.shift = pointer<const float>(shift);
  call.plus = pointer<std::uint64_t>(plus);
  call.nonzero = pointer<std::uint64_t>(nonzero);
  const py::gil_scoped_release release;
  start("pack", device, [&] { return launch_pack(call, stream_of(stream)); });
}

}  // namespace
}  // namespace subbit

PYBIND11_MODULE(_C_cuda, m) {
  using namespace subbit;
  m.doc() = "Compiled CUDA kernels of subbit_infer.";
  m.attr("architectures") = std::vector<int>{SUBBIT_CUDA_ARCHITECTURES};
  m.attr("version") = CUDART_VERSION;

  // _C has the same enumeration; each module keeps to its own.
  py::enum_<Unit>(m, "Unit", py::module_local()).value("k3x3", Unit::k3x3).value("k8x1x1", Unit::k8x1x1);

  py::class_<Conv>(m, "Conv", "A convolution whose sizes are settled.")
      .def(py::init(&make_conv), py::kw_only(), py::arg("unit"), py::arg("codewords"), py::arg("element"),
           py::arg("x_shape"), py::arg("x_strides"), py::arg("y_shape"), py::arg("y_strides"),
           py::arg("residual_strides"), py::arg("packs"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
           py::arg("groups"), py::arg("binary"), py::arg("sign_zero"), py::arg("activation"), py::arg("capability"))
      .def("can_run", &Conv::can_run, py::arg("route"))
      .def("scratch_bytes", &Conv::scratch_bytes, py::arg("route"), py::arg("x"), py::arg("x_nonzero"))
      .def("weight_bytes", &Conv::weight_bytes, py::arg("route"))
      .def("prepare", &Conv::prepare, py::kw_only(), py::arg("route"), py::arg("device"), py::arg("stream"),
           py::arg("indices"), py::arg("codebook"), py::arg("weight"))
      .def("__call__", &Conv::run, py::kw_only(), py::arg("route"), py::arg("device"), py::arg("stream"), py::arg("x"),
           py::arg("x_nonzero"), py::arg("indices"), py::arg("codebook"), py::arg("prepared_weight"), py::arg("scale"),
           py::arg("bias"), py::arg("residual"), py::arg("slope"), py::arg("shift"), py::arg("y"), py::arg("y_plus"),
           py::arg("y_nonzero"), py::arg("pack_shift"), py::arg("scratch"));
  m.def("pack", &pack_signs, py::kw_only(), py::arg("device"), py::arg("stream"), py::arg("x"), py::arg("element"),
        py::arg("shape"), py::arg("strides"), py::arg("shift"), py::arg("plus"), py::arg("nonzero"));
}
