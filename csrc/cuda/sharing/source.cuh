// Where the sharing kernel reads its input: elements of three types, or packed activations; all as float32.
#pragma once

#include "cuda/common/params.h"
#include "cuda/common/platform.h"

namespace subbit {

// torch.sign, or with sign_zero the sign that takes 0 as +1. NaN has sign 0.
SUBBIT_DEVICE float sign_of(float x, bool sign_zero) {
  const bool is_plus = x > 0.0f || (sign_zero && x == 0.0f);
  return is_plus ? 1.0f : x < 0.0f ? -1.0f : 0.0f;
}

// Sources load and take signs apart from each other, both without branches, so that many loads are under way at once.
// Offsets are those of a pixel in one channel; what is not valid lies in the padding and is 0.
template <class T>
struct ElementSource {
  const T* x;
  std::int64_t channel_stride;
  bool binarize, sign_zero;

  SUBBIT_DEVICE float load(std::int64_t offset, int channel, bool valid) const {
    return valid ? to_float(x[offset + channel * channel_stride]) : 0.0f;
  }
  SUBBIT_DEVICE float sign(float v, bool valid) const { return valid ? sign_of(v, sign_zero) : 0.0f; }
};

// Strides count words. Words are read as two of 32 bits: that takes half the registers, and the bits are the same since
// the least significant come first.
struct PackedSource {
  const std::uint32_t* plus;
  const std::uint32_t* nonzero;            // or null
  static constexpr bool binarize = false;  // what is loaded are signs

  SUBBIT_DEVICE float load(std::int64_t offset, int channel, bool valid) const {
    const std::int64_t at = 2 * offset + (channel >> 5);
    const std::uint32_t is_plus = valid ? plus[at] : 0, is_nonzero = !valid ? 0 : nonzero ? nonzero[at] : ~0u;
    const auto has = [&](std::uint32_t word) { return (word >> (channel & 31) & 1) != 0; };
    return has(is_plus) ? 1.0f : has(is_nonzero) ? -1.0f : 0.0f;
  }
  SUBBIT_DEVICE float sign(float v, bool) const { return v; }
};

// Calls f with the source of the operands. One branch for many loads.
template <class F>
SUBBIT_DEVICE void with_source(const CudaParams& params, const CudaOperands& operands, F f) {
  const ConvProblem& conv = params.conv;
  if (conv.x_is_packed) {
    f(PackedSource{reinterpret_cast<const std::uint32_t*>(operands.x_plus),
                   reinterpret_cast<const std::uint32_t*>(operands.x_nonzero)});
    return;
  }
  const bool binarize = conv.activations == Activations::kBinary;
  switch (params.element) {
    case Element::kFloat32:
      return f(ElementSource<float>{static_cast<const float*>(operands.x), conv.x_c, binarize, conv.sign_zero});
    case Element::kFloat16:
      return f(ElementSource<__half>{static_cast<const __half*>(operands.x), conv.x_c, binarize, conv.sign_zero});
    case Element::kBfloat16:
      return f(ElementSource<__nv_bfloat16>{static_cast<const __nv_bfloat16*>(operands.x), conv.x_c, binarize,
                                            conv.sign_zero});
  }
}

}  // namespace subbit
