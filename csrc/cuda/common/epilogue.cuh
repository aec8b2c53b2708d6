// What is done to the sums, in the order of subbit_infer/core/epilogue.py, and the signs of the result that are packed.
#pragma once

#include "cuda/common/params.h"
#include "cuda/common/platform.h"

namespace subbit {

// As torch has them: NaN goes through.
SUBBIT_DEVICE float activate(float v, Activation activation, float slope) {
  switch (activation) {
    case Activation::kRelu:
      return v < 0.0f ? 0.0f : v;
    case Activation::kHardtanh:
      return v < -1.0f ? -1.0f : v > 1.0f ? 1.0f : v;
    case Activation::kPrelu:
      return v > 0.0f ? v : __fmul_rn(v, slope);
    case Activation::kNone:
      break;
  }
  return v;
}

// One output channel's part of the epilogue, read once.
struct ChannelEpilogue {
  float scale, bias, slope, shift, pack_shift;
};

SUBBIT_DEVICE ChannelEpilogue load_epilogue(const CudaOperands& operands, std::int64_t channel) {
  const auto load = [&](const float* vector, float otherwise) { return vector ? vector[channel] : otherwise; };
  return {load(operands.scale, 1.0f), load(operands.bias, 0.0f), load(operands.slope, 0.0f), load(operands.shift, 0.0f),
          load(operands.pack_shift, 0.0f)};
}

// The result of one sum, in float32. Where there is no residual, it is 0. Never fused: each operation is rounded by
// itself, so that the bits are those of the CPU's kernels. An absent vector's 1 or 0 changes nothing but that -0
// becomes 0, as in every CPU kernel.
SUBBIT_DEVICE float finish_sum(float sum, const ChannelEpilogue& channel, Activation activation, float residual) {
  float v = __fadd_rn(__fmul_rn(sum, channel.scale), channel.bias);
  v = activate(__fadd_rn(v, residual), activation, channel.slope);
  return __fadd_rn(v, channel.shift);
}

// The two bits of a packed activation: v + pack_shift is +1; is not 0. Where zeros count as +1 (no nonzero plane),
// only the first one means something. NaN is neither.
struct SignBits {
  bool plus, nonzero;
};

SUBBIT_DEVICE SignBits sign_bits(float v, float pack_shift, bool sign_zero) {
  v = __fadd_rn(v, pack_shift);
  const bool plus = v > 0.0f || (sign_zero && v == 0.0f);
  return {plus, plus || v < 0.0f};
}

}  // namespace subbit
