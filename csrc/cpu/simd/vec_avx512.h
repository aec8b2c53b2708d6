// A vector type of 512 bits for the ISA files: sixteen floats, for the last step.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace subbit {
namespace {

struct F32x16 {
  using Vector = __m512;
  using Bits = std::uint16_t;  // one per lane
  static constexpr int kLanes = 16;

  static __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }

  static __m512 broadcast(float x) { return _mm512_set1_ps(x); }
  static __m512 load(const float* p) { return _mm512_load_ps(p); }
  static void store(float* p, __m512 x) { _mm512_store_ps(p, x); }
  static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
  static __m512 max(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }  // b where one is NaN; so is min
  static __m512 min(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
  static __m512 positive_or(__m512 x, __m512 otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), otherwise, x);
  }
  static __m512 load_partial(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
  static __m512 mul(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }

  // Of the first n lanes.
  static Bits positive_bits(__m512 x, int n) { return compare_bits<_CMP_GT_OQ>(x, n); }
  static Bits not_negative_bits(__m512 x, int n) { return compare_bits<_CMP_GE_OQ>(x, n); }
  static Bits negative_bits(__m512 x, int n) { return compare_bits<_CMP_LT_OQ>(x, n); }
  template <int kRelation>
  static Bits compare_bits(__m512 x, int n) {
    return _mm512_mask_cmp_ps_mask(first_lanes(n), x, _mm512_setzero_ps(), kRelation);
  }
  static __m512 load_sums(const float* p) { return _mm512_load_ps(p); }
  // Sums of 16 bits, without sign.
  static __m512 load_counts(const std::uint16_t* p) {
    return counts_of(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static __m512 counts_of(__m256i sums) { return _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(sums)); }
  // a * b + c of integers whose product and sum are below 2^24: fused, since nothing is rounded.
  static __m512 exact_multiply_add(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
  static void store_partial(float* p, __m512 x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }
};

}  // namespace
}  // namespace subbit
