// Where the sharing kernel reads its input: elements of three kinds, or packed signs; all as float32.
#pragma once

#include "cuda/params.h"
#include "cuda/platform.h"

namespace subbit {

// torch.sign, or with sign_zero the sign that takes 0 as +1. NaN has sign 0.
SUBBIT_DEVICE float sign_of(float x, bool sign_zero) {
  if (x > 0.0f || (sign_zero && x == 0.0f)) return 1.0f;
  return x < 0.0f ? -1.0f : 0.0f;
}

// Offsets are those of a pixel in one channel; what is not valid lies in the padding and is 0.
template <class T>
struct ElementSource {
  const T* x;
  std::int64_t channel_stride;
  bool binarize, sign_zero;

  SUBBIT_DEVICE float operator()(std::int64_t offset, int channel, bool valid) const {
    if (!valid) return 0.0f;
    const float v = to_float(x[offset + channel * channel_stride]);
    return binarize ? sign_of(v, sign_zero) : v;
  }
};

// Strides count words. 32-bit halves of the words: half the registers, and the same bits since the least significant
// come first.
struct PackedSource {
  const std::uint32_t* plus;
  const std::uint32_t* nonzero;  // or null

  SUBBIT_DEVICE float operator()(std::int64_t offset, int channel, bool valid) const {
    if (!valid) return 0.0f;
    const std::int64_t at = 2 * offset + (channel >> 5);
    const auto bit = [&](const std::uint32_t* words) { return (words[at] >> (channel & 31) & 1) != 0; };
    if (bit(plus)) return 1.0f;
    return nonzero && !bit(nonzero) ? 0.0f : -1.0f;
  }
};

// Calls f with the source of the operands. One branch for many loads.
template <class F>
SUBBIT_DEVICE void with_source(const CudaParams& params, const CudaOperands& operands, F f) {
  const ConvParams& conv = params.conv;
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
