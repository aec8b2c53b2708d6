// One convolution: sizes, strides in elements, options, and the one check of them; and apart from them the pointers of
// a call. Plain data.
#pragma once

#include <cstdint>

#include "core/unit.h"

namespace subbit {

enum class Activations { kFloat = 0, kBinary = 1 };

// What is done to a sum after scale, bias and residual, in the order of epilogue.ACTIVATIONS.
enum class Activation { kNone = 0, kRelu = 1, kHardtanh = 2, kPrelu = 3 };

struct ConvProblem {
  Unit unit = Unit::k3x3;
  Activations activations = Activations::kFloat;
  bool sign_zero = false;  // binary activations: sign(0) is +1 instead of 0
  Activation activation = Activation::kNone;

  std::int64_t batch = 0, in_channels = 0, height = 0, width = 0;
  std::int64_t out_channels = 0, out_height = 0, out_width = 0;
  std::int64_t groups = 1;
  std::int64_t stride_h = 1, stride_w = 1;
  std::int64_t pad_h = 0, pad_w = 0;
  std::int64_t dilation_h = 1, dilation_w = 1;

  std::int64_t x_n = 0, x_c = 0, x_h = 0, x_w = 0;
  std::int64_t y_n = 0, y_c = 0, y_h = 0, y_w = 0;
  bool x_is_packed = false;  // its strides mean nothing then
  bool has_y = true;         // or its strides mean nothing
  bool packs = false;
  std::int64_t residual_n = 0, residual_c = 0, residual_h = 0, residual_w = 0;

  int threads = 1;
};

// Throws std::invalid_argument for what no convolution has, or what overflows. Both Python modules call it; drivers,
// planners and kernels rely on it.
void check(const ConvProblem& problem);

// Throws std::invalid_argument with the rule where it does not hold.
void expect(bool holds, const char* rule);

// y = activation(scale * sum + bias + residual) + shift, each operation rounded by itself; what is null is left out.
// Packed activations are words of 64 channels, [n][row][column][word] (subbit_infer/activations.py).
struct ConvOperands {
  const float* x = nullptr;  // or packed:
  const std::uint64_t* x_plus = nullptr;
  const std::uint64_t* x_nonzero = nullptr;  // null: no activation is 0
  const float* scale = nullptr;              // (out_channels,), as are bias, slope, shift and pack_shift
  const float* bias = nullptr;
  const float* residual = nullptr;
  const float* slope = nullptr;
  const float* shift = nullptr;
  float* y = nullptr;
  std::uint64_t* y_plus = nullptr;     // the sign of y + pack_shift
  std::uint64_t* y_nonzero = nullptr;  // null: 0 packs as +1
  const float* pack_shift = nullptr;
};

constexpr int kWordChannels = 64;

}  // namespace subbit
