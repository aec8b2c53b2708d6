// The Python module subbit_infer._C: checks what it is given, releases the GIL, calls. Tensors arrive as
// addresses, sizes and strides (in elements), so nothing here depends on torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "core/checked.h"
#include "core/packed.h"
#include "cpu/assign/assign.h"
#include "cpu/driver/conv.h"
#include "cpu/epilogue/pack.h"
#include "cpu/families/table.h"
#include "cpu/isa/features.h"
#include "cpu/planner/select.h"
#include "cpu/weight.h"
#include "cuda/planner/select.h"
#include "python/arguments.h"

namespace py = pybind11;

namespace subbit {
namespace {

std::unique_ptr<Weight> make_weight(Unit unit, std::int64_t out_channels, std::int64_t units, int codewords,
                                    std::uintptr_t indices, std::int64_t indices_bytes, std::uintptr_t codebook,
                                    std::int64_t codebook_bytes) {
  const py::gil_scoped_release release;
  return std::make_unique<Weight>(decode(unit, out_channels, units, codewords, pointer<const std::uint8_t>(indices),
                                         indices_bytes, pointer<const std::uint8_t>(codebook), codebook_bytes));
}

std::unique_ptr<Conv> make_conv(const Weight& weight, const Quad& x_shape, const std::optional<Quad>& x_strides,
                                const Quad& y_shape, const std::optional<Quad>& y_strides,
                                const std::optional<Quad>& residual_strides, bool packs, const Pair& stride,
                                const Pair& padding, const Pair& dilation, std::int64_t groups, bool binary,
                                bool sign_zero, int activation, int threads, const std::optional<std::string>& level,
                                const std::optional<std::string>& plan) {
  const DecodedWeight& decoded = weight.decoded();
  const ConvProblem problem =
      conv_problem(decoded.unit, x_shape, x_strides, y_shape, y_strides, residual_strides, packs, stride, padding,
                   dilation, groups, binary, sign_zero, activation, threads);
  expect(y_shape[1] == decoded.out_channels && x_shape[1] == decoded.units * unit_channels(decoded.unit) * groups,
         "the channels do not fit the weight");
  const auto rows_follow = [&](const std::optional<Quad>& strides) {
    return !strides || y_shape[2] <= 1 || (*strides)[2] == y_shape[3] * (*strides)[3];
  };
  expect(rows_follow(y_strides), "the output's rows must follow each other");
  expect(rows_follow(residual_strides), "the residual's rows must follow each other");
  const Level used = level ? parse_level(*level) : active_level();
  const std::string wanted = plan ? *plan : wanted_plan();
  const py::gil_scoped_release release;
  return std::make_unique<Conv>(weight, problem, used, wanted);
}

void run_conv(const Conv& conv, std::uintptr_t x, std::uintptr_t x_nonzero, std::uintptr_t y, std::uintptr_t y_plus,
              std::uintptr_t y_nonzero, std::uintptr_t scale, std::uintptr_t bias, std::uintptr_t residual,
              std::uintptr_t slope, std::uintptr_t shift, std::uintptr_t pack_shift) {
  ConvOperands operands;
  if (conv.is_packed()) {
    operands.x_plus = pointer<const std::uint64_t>(x);
    operands.x_nonzero = pointer<const std::uint64_t>(x_nonzero);
  } else {
    operands.x = pointer<const float>(x);
  }
  operands.y = pointer<float>(y);
  operands.y_plus = pointer<std::uint64_t>(y_plus);
  operands.y_nonzero = pointer<std::uint64_t>(y_nonzero);
  operands.scale = pointer<const float>(scale);
  operands.bias = pointer<const float>(bias);
  operands.residual = pointer<const float>(residual);
  operands.slope = pointer<const float>(slope);
  operands.shift = pointer<const float>(shift);
  operands.pack_shift = pointer<const float>(pack_shift);
  const py::gil_scoped_release release;
  conv(operands);
}

void pack_signs(std::uintptr_t x, const Quad& shape, const Quad& strides, std::uintptr_t shift, bool sign_zero,
                std::uintptr_t plus, std::uintptr_t nonzero, int threads, const std::optional<std::string>& level) {
  checked_product({shape[0], shape[1], shape[2], shape[3]}, "input");
  if (threads < 1) throw std::invalid_argument("pack: threads must be at least 1");
  const PackParams params{shape[0],   shape[1],   shape[2],   shape[3],  strides[0],
                          strides[1], strides[2], strides[3], sign_zero, threads};
  const Level used = level ? parse_level(*level) : active_level();
  const py::gil_scoped_release release;
  pack(params, pointer<const float>(x), pointer<const float>(shift), pointer<std::uint64_t>(plus),
       pointer<std::uint64_t>(nonzero), used);
}

void assign_units(std::uintptr_t units, std::int64_t count, int taps, std::uintptr_t codebook, int codewords,
                  std::uintptr_t indices, int threads, const std::optional<std::string>& level) {
  const Level used = level ? parse_level(*level) : active_level();
  const py::gil_scoped_release release;
  assign(pointer<const float>(units), count, taps, pointer<const float>(codebook), codewords, threads, used,
         pointer<std::int64_t>(indices));
}

bool same_bytes(std::uintptr_t a, std::uintptr_t b, std::size_t count) {
  const py::gil_scoped_release release;
  return std::memcmp(pointer<const void>(a), pointer<const void>(b), count) == 0;
}

// Any machine can ask what any other would do, so the level is only looked up, not checked against this one.
std::vector<py::dict> list_candidates(bool binary, Unit unit, int codewords, std::int64_t units, std::int64_t outputs,
                                      std::int64_t groups, std::int64_t spread, std::int64_t pixels,
                                      std::int64_t input_pixels, const std::string& level, bool packed_input) {
  const auto* found = std::find(kLevelNames, kLevelNames + kLevelCount, level);
  if (found == kLevelNames + kLevelCount) {
    throw std::invalid_argument("level must be scalar, avx2, avx512 or avx512vbmi, got '" + level + "'");
  }
  const Problem problem{binary ? Activations::kBinary : Activations::kFloat,
                        unit,
                        codewords,
                        units,
                        outputs,
                        groups,
                        spread,
                        pixels,
                        input_pixels,
                        packed_input};
  std::vector<py::dict> result;
  for (const Candidate& candidate : candidates(problem, static_cast<Level>(found - kLevelNames))) {
    py::dict one;
    one["plan"] = candidate.name();
    one["nanoseconds"] = candidate.nanoseconds;
    if (const Kernel* kernel = candidate.plan.kernel) {
      one["kernel"] = kernel->name;
      one["level"] = name(kernel->level);
      one["binarize"] = candidate.plan.binarize;
      one["units_per_block"] = candidate.plan.units_per_block;
    }
    result.push_back(one);
  }
  return result;
}

// The same of GPUs: a function of sizes, so it needs none.
std::vector<py::dict> list_cuda_candidates(bool binary, int element, Unit unit, int codewords, std::int64_t units,
                                           std::int64_t outputs, std::int64_t groups, std::int64_t batch,
                                           std::int64_t pixels, std::int64_t out_width, std::int64_t input_pixels,
                                           bool has_zeros, bool is_channels_last, bool packed_input, bool float_output,
                                           bool packed_output, bool epilogue_commutes_with_rounding, int capability,
                                           std::int64_t multiprocessors, const std::vector<std::string>& routes) {
  if (element < 0 || element > static_cast<int>(Element::kBfloat16)) {
    throw std::invalid_argument("element must be 0 to 2, got " + std::to_string(element));
  }
  if (multiprocessors < 1) {
    throw std::invalid_argument("multiprocessors must be at least 1, got " + std::to_string(multiprocessors));
  }
  if (out_width < 0 || out_width > pixels) {
    throw std::invalid_argument("out_width must be 0 to pixels, got " + std::to_string(out_width));
  }
  checked_product({batch, groups, units, unit_channels(unit), input_pixels}, "input");
  checked_product({batch, groups, outputs, pixels}, "output");
  const cuda::Problem problem{binary ? Activations::kBinary : Activations::kFloat,
                              static_cast<Element>(element),
                              unit,
                              codewords,
                              units,
                              outputs,
                              groups,
                              batch,
                              pixels,
                              out_width,
                              input_pixels,
                              has_zeros,
                              is_channels_last,
                              packed_input,
                              float_output,
                              packed_output,
                              epilogue_commutes_with_rounding};
  std::vector<cuda::Plan> plans;
  for (const std::string& route : routes) plans.push_back(cuda::route_plan(route));
  std::vector<py::dict> result;
  for (const auto& candidate : cuda::candidates(problem, {capability, multiprocessors}, plans)) {
    py::dict one;
    one["plan"] = candidate.name();
    one["microseconds"] = candidate.microseconds;
    result.push_back(one);
  }
  return result;
}

std::vector<py::tuple> kernels() {
  std::vector<py::tuple> result;
  for (const Kernel& kernel : all_kernels()) {
    result.push_back(py::make_tuple(kernel.name, name(kernel.level), kernel.activations == Activations::kBinary));
  }
  return result;
}

}  // namespace
}  // namespace subbit

PYBIND11_MODULE(_C, m) {
  using namespace subbit;
  m.doc() = "Compiled CPU kernels of subbit_infer.";

  py::enum_<Unit>(m, "Unit").value("k3x3", Unit::k3x3).value("k8x1x1", Unit::k8x1x1);

  py::class_<Weight>(m, "Weight", "A validated weight and the forms of it that kernels read.")
      .def(py::init(&make_weight), py::arg("unit"), py::arg("out_channels"), py::arg("units"), py::arg("codewords"),
           py::arg("indices"), py::arg("indices_bytes"), py::arg("codebook"), py::arg("codebook_bytes"));

  py::class_<Conv>(m, "Conv", "A convolution whose sizes and weight are settled.")
      .def(py::init(&make_conv), py::keep_alive<1, 2>(), py::arg("weight"), py::arg("x_shape"), py::arg("x_strides"),
           py::arg("y_shape"), py::arg("y_strides"), py::arg("residual_strides"), py::arg("packs"), py::arg("stride"),
           py::arg("padding"), py::arg("dilation"), py::arg("groups"), py::arg("binary"), py::arg("sign_zero"),
           py::arg("activation"), py::arg("threads"), py::arg("level") = py::none(), py::arg("plan") = py::none())
      .def_property_readonly("scratch_bytes", &Conv::scratch_bytes)
      .def_property_readonly("is_dense", [](const Conv& conv) { return conv.kernel() == nullptr; })
      .def_property_readonly("kernel", [](const Conv& conv) { return conv.kernel() ? conv.kernel()->name : nullptr; })
      .def("__call__", &run_conv, py::arg("x"), py::arg("x_nonzero"), py::arg("y"), py::arg("y_plus"),
           py::arg("y_nonzero"), py::arg("scale"), py::arg("bias"), py::arg("residual"), py::arg("slope"),
           py::arg("shift"), py::arg("pack_shift"));
  m.def("pack", &pack_signs, py::arg("x"), py::arg("shape"), py::arg("strides"), py::arg("shift"), py::arg("sign_zero"),
        py::arg("plus"), py::arg("nonzero"), py::arg("threads"), py::arg("level") = py::none());
  m.def("assign", &assign_units, py::arg("units"), py::arg("count"), py::arg("taps"), py::arg("codebook"),
        py::arg("codewords"), py::arg("indices"), py::arg("threads"), py::arg("level") = py::none());
  m.def("same_bytes", &same_bytes, py::arg("a"), py::arg("b"), py::arg("count"));
  m.def("candidates", &list_candidates, py::arg("binary"), py::arg("unit"), py::arg("codewords"), py::arg("units"),
        py::arg("outputs"), py::arg("groups"), py::arg("spread"), py::arg("pixels"), py::arg("input_pixels"),
        py::arg("level"), py::arg("packed_input") = false);
  m.def("cuda_candidates", &list_cuda_candidates, py::kw_only(), py::arg("binary"), py::arg("element"), py::arg("unit"),
        py::arg("codewords"), py::arg("units"), py::arg("outputs"), py::arg("groups"), py::arg("batch"),
        py::arg("pixels"), py::arg("out_width"), py::arg("input_pixels"), py::arg("has_zeros"),
        py::arg("is_channels_last"), py::arg("packed_input"), py::arg("float_output"), py::arg("packed_output"),
        py::arg("epilogue_commutes_with_rounding"), py::arg("capability"), py::arg("multiprocessors"),
        py::arg("routes"));
  m.def("wanted_plan", &wanted_plan);
  m.def("kernels", &kernels, "Every compiled kernel: (name, level, binary activations).");
  m.def("machine_level", [] { return std::string(name(machine_level())); });
  m.def("active_level", [] { return std::string(name(active_level())); });
}
