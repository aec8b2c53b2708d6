// What both Python modules are given of a convolution: addresses, and sizes and options that are made a ConvProblem.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>

#include "core/problem.h"

namespace subbit {

using Pair = std::array<std::int64_t, 2>;  // rows, columns
using Quad = std::array<std::int64_t, 4>;  // N, C, H, W

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The problem, checked. Strides are absent where x is packed, no float result is asked for, or there is no residual.
inline ConvProblem conv_problem(Unit unit, const Quad& x_shape, const std::optional<Quad>& x_strides,
                                const Quad& y_shape, const std::optional<Quad>& y_strides,
                                const std::optional<Quad>& residual_strides, bool packs, const Pair& stride,
                                const Pair& padding, const Pair& dilation, std::int64_t groups, bool binary,
                                bool sign_zero, int activation, int threads) {
  expect(y_shape[0] == x_shape[0], "the output's sizes do not fit");
  expect(activation >= 0 && activation <= static_cast<int>(Activation::kPrelu), "activation must be 0 to 3");
  ConvProblem problem;
  problem.unit = unit;
  problem.activations = binary ? Activations::kBinary : Activations::kFloat;
  problem.sign_zero = sign_zero;
  problem.activation = static_cast<Activation>(activation);
  problem.batch = x_shape[0], problem.in_channels = x_shape[1];
  problem.height = x_shape[2], problem.width = x_shape[3];
  problem.out_channels = y_shape[1], problem.out_height = y_shape[2], problem.out_width = y_shape[3];
  problem.groups = groups;
  problem.stride_h = stride[0], problem.stride_w = stride[1];
  problem.pad_h = padding[0], problem.pad_w = padding[1];
  problem.dilation_h = dilation[0], problem.dilation_w = dilation[1];
  problem.x_is_packed = !x_strides;
  problem.has_y = y_strides.has_value();
  problem.packs = packs;
  problem.threads = threads;
  const auto set = [](const std::optional<Quad>& strides, auto& n, auto& c, auto& h, auto& w) {
    if (strides) n = (*strides)[0], c = (*strides)[1], h = (*strides)[2], w = (*strides)[3];
  };
  set(x_strides, problem.x_n, problem.x_c, problem.x_h, problem.x_w);
  set(y_strides, problem.y_n, problem.y_c, problem.y_h, problem.y_w);
  set(residual_strides, problem.residual_n, problem.residual_c, problem.residual_h, problem.residual_w);
  check(problem);
  return problem;
}

}  // namespace subbit
