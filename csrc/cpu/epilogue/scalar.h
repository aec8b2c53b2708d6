// The last steps in plain C++: the specification that every other level is tested against, bit for bit.
#pragma once

#include <cstdint>

#include "core/problem.h"
#include "cpu/epilogue/tasks.h"

namespace subbit {
namespace {

// As torch has them: NaN goes through.
inline float activate(float v, Activation activation, float slope) {
  switch (activation) {
    case Activation::kRelu:
      return v < 0 ? 0 : v;
    case Activation::kHardtanh:
      return v < -1 ? -1 : v > 1 ? 1 : v;
    case Activation::kPrelu:
      return v > 0 ? v : v * slope;
    case Activation::kNone:
      break;
  }
  return v;
}

// The output of channel o and pixel p, from its sum.
inline float finish_value(const FinishTask& task, std::int64_t o, int p, float sum) {
  float v = sum;
  if (task.scale) v *= task.scale[o];
  v += task.bias ? task.bias[o] : 0;
  if (task.residual) v += task.residual[o * task.residual_channel + p * task.residual_pixel];
  v = activate(v, task.activation, task.slope ? task.slope[o] : 0);
  return v + (task.shift ? task.shift[o] : 0);  // -0 becomes 0, at every level
}

// The words of pixel p, whose channels have the values value(0), value(1), ...
template <class Value>
inline void pack_pixel(const Words& out, std::int64_t p, std::int64_t channels, const Value& value) {
  for (std::int64_t word = 0; word * kWordChannels < channels; ++word) {
    std::uint64_t plus = 0, nonzero = 0;
    for (int bit = 0; bit < kWordChannels && word * kWordChannels + bit < channels; ++bit) {
      const std::int64_t c = word * kWordChannels + bit;
      const float v = value(c) + (out.shift ? out.shift[c] : 0);
      const std::uint64_t is_plus = v > 0 || (out.sign_zero && v == 0);
      plus |= is_plus << bit;
      nonzero |= (is_plus | std::uint64_t{v < 0}) << bit;
    }
    out.plus[p * out.stride + word] = plus;
    if (out.nonzero) out.nonzero[p * out.stride + word] = nonzero;
  }
}

// Sums [tile][output][kPixels].
template <class Sum, int kPixels>
inline void finish_tiles(const FinishTask& task) {
  for (std::int64_t o = 0; o < task.outputs; ++o) {
    const Sum* sums = static_cast<const Sum*>(task.sums) + o * kPixels;
    for (int p = 0; p < task.pixels; ++p) {
      const auto sum = static_cast<float>(sums[p / kPixels * task.sums_stride + p % kPixels]);
      task.y[o * task.y_channel + p * task.y_pixel] = finish_value(task, o, p, sum);
    }
  }
}

// Sums [pixel][output] of 16 bits.
inline void finish_by_pixel(const FinishTask& task) {
  for (int p = 0; p < task.pixels; ++p) {
    const std::uint16_t* sums = static_cast<const std::uint16_t*>(task.sums) + p * task.sums_stride;
    const auto value = [&](std::int64_t o) {
      return finish_value(task, o, p, task.factor * static_cast<float>(sums[o]) + task.offset[p]);
    };
    if (task.y) {
      float* y = task.y + p * task.y_pixel;
      for (std::int64_t o = 0; o < task.outputs; ++o) y[o * task.y_channel] = value(o);
      if (task.words.plus) pack_pixel(task.words, p, task.outputs, [&](auto o) { return y[o * task.y_channel]; });
    } else {
      pack_pixel(task.words, p, task.outputs, value);
    }
  }
}

inline void pack(const PackTask& task) {
  for (std::int64_t p = 0; p < task.pixels; ++p) {
    const float* x = task.x + p * task.x_pixel;
    pack_pixel(task.words, p, task.channels, [&](std::int64_t c) { return x[c * task.x_channel]; });
  }
}

}  // namespace
}  // namespace subbit
