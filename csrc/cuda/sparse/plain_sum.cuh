// Sums in the plain order, for those that the sparse products did not make finite (kernel.cuh, "Infinities").
#pragma once

#include <cstdint>

#include "cuda/common/packed_index.cuh"
#include "cuda/common/platform.h"
#include "cuda/sparse/kinds.cuh"

namespace subbit {

SUBBIT_DEVICE bool is_finite(float v) {
  constexpr std::uint32_t kExponent = 0x7f800000u;
  return (__float_as_uint(v) & kExponent) != kExponent;
}

// The sum of one output at one pixel, tap by tap.
template <class Kind>
SUBBIT_DEVICE float plain_sum(const SparseArgs& a, const OutputPixel& pixel, std::int64_t group, std::int64_t output) {
  const ConvProblem& conv = a.params.conv;
  const PackedIndices indices{a.operands.indices, a.index_row_words, a.weight.tau};
  float sum = 0.0f;
  SUBBIT_ROLLED
  for (std::int64_t channel = 0; channel < a.weight.group_channels; ++channel) {
    const std::uint32_t codeword = a.operands.codebook[indices.at(output, channel)];
    SUBBIT_ROLLED
    for (int tap = 0; tap < kTaps * kTaps; ++tap) {
      const std::int64_t row = pixel.row * conv.stride_h - conv.pad_h + tap / kTaps * conv.dilation_h;
      const std::int64_t column = pixel.column * conv.stride_w - conv.pad_w + tap % kTaps * conv.dilation_w;
      if (row < 0 || row >= conv.height || column < 0 || column >= conv.width) continue;
      const std::int64_t from = pixel.image * a.x.n + row * a.x.h + column * a.x.w + group * a.x.group + channel * 2;
      float x = 0.0f;
      SUBBIT_UNROLL
      for (int part = 0; part < Kind::kParts; ++part) {
        x = __fadd_rn(x, to_float(*reinterpret_cast<const typename Kind::Half*>(a.x.planes[part] + from)));
      }
      sum = __fadd_rn(sum, (codeword >> tap & 1) != 0 ? x : -x);
    }
  }
  return sum;
}

}  // namespace subbit
