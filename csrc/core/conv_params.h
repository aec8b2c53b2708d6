// One convolution call: sizes, strides in elements, pointers. Plain data, checked by the caller.
#pragma once

#include <cstdint>

#include "core/unit.h"

namespace subbit {

enum class Activations { kFloat = 0, kBinary = 1 };

struct ConvParams {
  Unit unit = Unit::k3x3;
  Activations activations = Activations::kFloat;
  bool sign_zero = false;  // binary activations: sign(0) is +1 instead of 0

  std::int64_t batch = 0, in_channels = 0, height = 0, width = 0;
  std::int64_t out_channels = 0, out_height = 0, out_width = 0;
  std::int64_t groups = 1;
  std::int64_t stride_h = 1, stride_w = 1;
  std::int64_t pad_h = 0, pad_w = 0;
  std::int64_t dilation_h = 1, dilation_w = 1;

  const float* x = nullptr;
  std::int64_t x_n = 0, x_c = 0, x_h = 0, x_w = 0;
  float* y = nullptr;
  std::int64_t y_n = 0, y_c = 0, y_h = 0, y_w = 0;
  const float* scale = nullptr;  // (out_channels,) or null for 1
  const float* bias = nullptr;   // (out_channels,) or null for 0

  int threads = 1;
};

}  // namespace subbit
