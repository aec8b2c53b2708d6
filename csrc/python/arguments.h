// What both Python modules are given of a convolution: addresses, and sizes that are checked and made ConvProblem.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "core/checked.h"
#include "core/problem.h"

namespace subbit {

using Pair = std::array<std::int64_t, 2>;  // rows, columns
using Quad = std::array<std::int64_t, 4>;  // N, C, H, W

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline void expect(bool holds, const std::string& rule) {
  if (!holds) throw std::invalid_argument("conv2d: " + rule);
}

inline std::int64_t output_size(std::int64_t input, std::int64_t pad, std::int64_t dilation, int kernel,
                                std::int64_t stride) {
  const std::int64_t reach = dilation * (kernel - 1) + 1;
  return input + 2 * pad < reach ? -1 : (input + 2 * pad - reach) / stride + 1;
}

// Throws std::invalid_argument where something does not fit. Strides are absent where x is packed, no float result is
// asked for, or there is no residual.
inline ConvProblem conv_params(Unit unit, const Quad& x_shape, const std::optional<Quad>& x_strides,
                               const Quad& y_shape, const std::optional<Quad>& y_strides,
                               const std::optional<Quad>& residual_strides, bool packs, const Pair& stride,
                               const Pair& padding, const Pair& dilation, std::int64_t groups, bool binary,
                               bool sign_zero, int activation) {
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  for (int axis = 0; axis < 2; ++axis) {
    expect(stride[axis] >= 1 && stride[axis] < kMost, "stride must be in [1, 2^31)");
    expect(dilation[axis] >= 1 && dilation[axis] < kMost, "dilation must be in [1, 2^31)");
    expect(padding[axis] >= 0 && padding[axis] < kMost, "padding must be in [0, 2^31)");
    expect(x_shape[2 + axis] >= 0 && x_shape[2 + axis] < kMost, "height and width must be in [0, 2^31)");
    expect(y_shape[2 + axis] ==
               output_size(x_shape[2 + axis], padding[axis], dilation[axis], kernel_size(unit), stride[axis]),
           "the output's height and width do not fit the input's");
  }
  expect(y_shape[0] == x_shape[0] && y_shape[1] >= 1, "the output's sizes do not fit");
  expect(groups >= 1 && y_shape[1] % groups == 0, "groups must divide out_channels");
  checked_product({x_shape[0], x_shape[1], x_shape[2], x_shape[3]}, "input");
  checked_product({y_shape[0], y_shape[1], y_shape[2], y_shape[3]}, "output");
  const std::int64_t step = checked_product({groups, unit_channels(unit)}, "groups");
  expect(x_shape[1] >= step && x_shape[1] % step == 0, "the input's channels do not fit the weight");
  expect(x_strides || binary, "packed input is binary");
  expect(y_strides || packs, "there must be an output");
  expect(activation >= 0 && activation <= static_cast<int>(Activation::kPrelu), "activation must be 0 to 3");

  ConvProblem params;
  params.unit = unit;
  params.activations = binary ? Activations::kBinary : Activations::kFloat;
  params.sign_zero = sign_zero;
  params.activation = static_cast<Activation>(activation);
  params.batch = x_shape[0], params.in_channels = x_shape[1], params.height = x_shape[2], params.width = x_shape[3];
  params.out_channels = y_shape[1], params.out_height = y_shape[2], params.out_width = y_shape[3];
  params.groups = groups;
  params.stride_h = stride[0], params.stride_w = stride[1];
  params.pad_h = padding[0], params.pad_w = padding[1];
  params.dilation_h = dilation[0], params.dilation_w = dilation[1];
  params.x_is_packed = !x_strides;
  params.has_y = y_strides.has_value();
  params.packs = packs;
  const auto set = [](const std::optional<Quad>& strides, auto& n, auto& c, auto& h, auto& w) {
    if (strides) n = (*strides)[0], c = (*strides)[1], h = (*strides)[2], w = (*strides)[3];
  };
  set(x_strides, params.x_n, params.x_c, params.x_h, params.x_w);
  set(y_strides, params.y_n, params.y_c, params.y_h, params.y_w);
  set(residual_strides, params.residual_n, params.residual_c, params.residual_h, params.residual_w);
  return params;
}

}  // namespace subbit
