// Sixteen floats, for the ISA files: what the last step needs of them.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace subbit {
namespace {

struct F32x16 {
  static constexpr int kLanes = 16;

  static __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }

  static __m512 broadcast(float x) { return _mm512_set1_ps(x); }
  static void store(float* p, __m512 x) { _mm512_store_ps(p, x); }
  static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
  static __m512 max(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }  // b where one is NaN; so is min
  static __m512 min(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
  static __m512 positive_or(__m512 x, __m512 otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), otherwise, x);
  }
  static __m512 load_partial(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
  static __m512 mul(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }

  static __m512 load_sums(const float* p) { return _mm512_load_ps(p); }
  static void store_partial(float* p, __m512 x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }
};

}  // namespace
}  // namespace subbit
