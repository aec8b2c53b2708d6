// Signs of activations as bits, for the ISA files: 64 at a time.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace subbit {
namespace {

// Up to 64 taps as bits: `low` has a 1 for +1, `high` for +1 and 0.
struct Bits {
  std::uint64_t low, high;
};

// Up to 64 neighbouring inputs; bits from n on are 0 in low and 1 in high, as for padding.
inline Bits load_bits(const float* p, int n, bool sign_zero) {
  Bits bits{0, ~std::uint64_t{0}};
  const __m512 zero = _mm512_setzero_ps();
  for (int i = 0; 16 * i < n; ++i) {
    const int left = n - 16 * i;
    const __mmask16 lanes = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    const __m512 x = _mm512_maskz_loadu_ps(lanes, p + 16 * i);
    const __mmask16 positive = sign_zero ? _mm512_mask_cmp_ps_mask(lanes, x, zero, _CMP_GE_OQ)
                                         : _mm512_mask_cmp_ps_mask(lanes, x, zero, _CMP_GT_OQ);
    const __mmask16 negative = _mm512_cmp_ps_mask(x, zero, _CMP_LT_OQ);  // NaN is neither: it counts as 0
    bits.low |= std::uint64_t{positive} << (16 * i);
    bits.high &= ~(std::uint64_t{negative} << (16 * i));
  }
  return bits;
}

// Up to 64 inputs, `step` apart.
inline Bits load_bits(const float* p, std::int64_t step, int n, bool sign_zero) {
  if (step == 1) return load_bits(p, n, sign_zero);
  if (step == 2) {  // a strided convolution: read the neighbours too and keep every other bit
    constexpr std::uint64_t kEven = 0x5555555555555555;
    const int reach = 2 * n - 1;  // of the last one
    const Bits front = load_bits(p, reach < 64 ? reach : 64, sign_zero);
    const Bits back = reach > 64 ? load_bits(p + 64, reach - 64, sign_zero) : Bits{0, ~std::uint64_t{0}};
    return {_pext_u64(front.low, kEven) | _pext_u64(back.low, kEven) << 32,
            _pext_u64(front.high, kEven) | _pext_u64(back.high, kEven) << 32};
  }
  float gathered[64];
  for (int i = 0; i < n; ++i) gathered[i] = p[i * step];
  return load_bits(gathered, n, sign_zero);
}

}  // namespace
}  // namespace subbit
