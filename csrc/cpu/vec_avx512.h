// The vector of 512 bits for the ISA files: sixteen floats.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace subbit {
namespace {

struct F32x16 {
  using Element = float;
  using Sum = float;
  static constexpr int kLanes = 16;

  static __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }

  static __m512 zero() { return _mm512_setzero_ps(); }
  static __m512 broadcast(float x) { return _mm512_set1_ps(x); }
  static __m512 load(const float* p) { return _mm512_load_ps(p); }
  static __m512 load_unaligned(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, __m512 x) { _mm512_store_ps(p, x); }
  static void store_unaligned(float* p, __m512 x) { _mm512_storeu_ps(p, x); }
  static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
  static __m512 sub(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }
  static __m512 mul(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
  static __m512 negate(__m512 a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }

  // -1, 0 or 1; NaN gives 0.
  static __m512 sign_of(__m512 x, bool sign_zero) {
    const __mmask16 positive =
        sign_zero ? _mm512_cmp_ps_mask(x, zero(), _CMP_GE_OQ) : _mm512_cmp_ps_mask(x, zero(), _CMP_GT_OQ);
    const __mmask16 negative = _mm512_cmp_ps_mask(x, zero(), _CMP_LT_OQ);
    return _mm512_mask_blend_ps(negative, _mm512_maskz_mov_ps(positive, broadcast(1)), broadcast(-1));
  }
  static __m512 load_input(const float* p, int n, bool binarize, bool sign_zero) {
    const __m512 x = _mm512_maskz_loadu_ps(first_lanes(n), p);
    return binarize ? sign_of(x, sign_zero) : x;
  }
  // Lanes [begin, end) from p; the others are not read and are 0, which has no sign either.
  static constexpr bool kLoadsWindows = true;
  static __m512 load_window(const float* p, std::int64_t begin, std::int64_t end, bool binarize, bool sign_zero) {
    const auto clamp = [](std::int64_t v) { return v < 0 ? 0 : v > kLanes ? kLanes : static_cast<int>(v); };
    const __mmask16 lanes = first_lanes(clamp(end)) & static_cast<__mmask16>(~first_lanes(clamp(begin)));
    const __m512 x = _mm512_maskz_loadu_ps(lanes, p);
    return binarize ? _mm512_maskz_mov_ps(lanes, sign_of(x, sign_zero)) : x;
  }
  static __m512 load_sums(const float* p) { return _mm512_load_ps(p); }
  static void store_partial(float* p, __m512 x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }

  struct Accumulator {
    __m512 value;
    void open(const float* sums) { value = _mm512_load_ps(sums); }
    void add(__m512 x) { value = _mm512_add_ps(value, x); }
    void close(float* sums) const { _mm512_store_ps(sums, value); }
  };
};

}  // namespace
}  // namespace subbit
