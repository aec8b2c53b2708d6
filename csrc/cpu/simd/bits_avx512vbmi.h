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

// Masks of sixteen lanes each, the first in the lowest bits.
inline std::uint64_t join(const __mmask16 (&masks)[4]) {
  const __mmask32 low = _mm512_kunpackw(masks[1], masks[0]), high = _mm512_kunpackw(masks[3], masks[2]);
  return _mm512_kunpackd(high, low);
}

// What a sign needs to know of sixteen inputs: which count as +1, and which as 0. NaN does, in any case.
struct Signs {
  __mmask16 positive, zero;
};

inline Signs signs_of(__m512 x, __mmask16 lanes, bool sign_zero) {
  const __m512 zero = _mm512_setzero_ps();
  if (sign_zero) {
    return {_mm512_mask_cmp_ps_mask(lanes, x, zero, _CMP_GE_OQ), _mm512_mask_cmp_ps_mask(lanes, x, x, _CMP_UNORD_Q)};
  }
  return {_mm512_mask_cmp_ps_mask(lanes, x, zero, _CMP_GT_OQ), _mm512_mask_cmp_ps_mask(lanes, x, zero, _CMP_EQ_UQ)};
}

// Up to 64 neighbouring inputs; bits from n on are 0 in low and 1 in high, as for padding.
inline Bits load_bits(const float* p, int n, bool sign_zero) {
  __mmask16 positive[4] = {}, zeros[4] = {};
  for (int i = 0; i < 4 && 16 * i < n; ++i) {
    const int left = n - 16 * i;
    const __mmask16 lanes = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    const Signs signs = signs_of(_mm512_maskz_loadu_ps(lanes, p + 16 * i), lanes, sign_zero);
    positive[i] = signs.positive;
    zeros[i] = signs.zero;
  }
  const std::uint64_t low = join(positive), outside = n == 64 ? 0 : ~std::uint64_t{0} << n;
  if (((zeros[0] | zeros[1]) | (zeros[2] | zeros[3])) == 0) return {low, low | outside};
  return {low, low | join(zeros) | outside};
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
