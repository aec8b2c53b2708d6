// Vector types of 256 bits for the ISA files: floats, and bytes whose sums are 16 bits wide.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace subbit {
namespace {

// A mask of the first n of eight 32-bit lanes.
inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The first n of eight floats `kStep` apart, 1 or 2; the others are not read and are 0.
template <int kStep>
inline __m256 load_floats(const float* p, int n) {
  if constexpr (kStep == 1) {
    return n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first_lanes(n));
  } else {
    static_assert(kStep == 2);
    __m256 even;  // four of p[0..7] and four of p[8..14], by turns in each half
    if (n >= 8) {
      even = _mm256_shuffle_ps(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 7), _MM_SHUFFLE(3, 1, 2, 0));
    } else {
      const int reach = 2 * n - 1;  // of the last one
      even = _mm256_shuffle_ps(_mm256_maskload_ps(p, first_lanes(reach)),
                               _mm256_maskload_ps(p + 8, first_lanes(reach - 8)), _MM_SHUFFLE(2, 0, 2, 0));
    }
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(even), _MM_SHUFFLE(3, 1, 2, 0)));
  }
}

// -1, 0 or 1 in every lane; NaN gives 0. Comparisons give all ones, which is -1, where they hold.
inline __m256i sign_of(__m256 x, bool sign_zero) {
  const __m256 zero = _mm256_setzero_ps();
  const __m256 positive = sign_zero ? _mm256_cmp_ps(x, zero, _CMP_GE_OQ) : _mm256_cmp_ps(x, zero, _CMP_GT_OQ);
  const __m256 negative = _mm256_cmp_ps(x, zero, _CMP_LT_OQ);
  return _mm256_sub_epi32(_mm256_castps_si256(negative), _mm256_castps_si256(positive));
}

struct F32x8 {
  using Vector = __m256;
  using Bits = std::uint8_t;  // one per lane
  using Element = float;
  using Sum = float;
  static constexpr int kLanes = 8;

  static __m256 zero() { return _mm256_setzero_ps(); }
  static __m256 broadcast(float x) { return _mm256_set1_ps(x); }
  static __m256 load(const float* p) { return _mm256_load_ps(p); }
  static __m256 load_unaligned(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, __m256 x) { _mm256_store_ps(p, x); }
  static void store_unaligned(float* p, __m256 x) { _mm256_storeu_ps(p, x); }
  static __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
  static __m256 sub(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
  static __m256 mul(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
  static __m256 bit_and(__m256 a, __m256 b) { return _mm256_and_ps(a, b); }
  static __m256 negate(__m256 a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }

  // The first n of inputs `kStep` apart, or their signs; the others are not read and are 0.
  template <int kStep>
  static __m256 load_input(const float* p, int n, bool binarize, bool sign_zero) {
    const __m256 x = load_floats<kStep>(p, n);
    return binarize ? _mm256_cvtepi32_ps(sign_of(x, sign_zero)) : x;
  }
  static __m256 load_sums(const float* p) { return _mm256_load_ps(p); }
  static __m256 load_sums(const std::int16_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static std::uint64_t positive_bits(__m256 x) { return compare_bits<_CMP_GT_OQ>(x); }
  static std::uint64_t not_negative_bits(__m256 x) { return compare_bits<_CMP_GE_OQ>(x); }
  static std::uint64_t negative_bits(__m256 x) { return compare_bits<_CMP_LT_OQ>(x); }
  template <int kRelation>
  static std::uint64_t compare_bits(__m256 x) {
    return static_cast<std::uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), kRelation)));
  }
  // Of the first n lanes.
  static Bits positive_bits(__m256 x, int n) { return first_bits(positive_bits(x), n); }
  static Bits not_negative_bits(__m256 x, int n) { return first_bits(not_negative_bits(x), n); }
  static Bits negative_bits(__m256 x, int n) { return first_bits(negative_bits(x), n); }
  static Bits first_bits(std::uint64_t bits, int n) { return static_cast<Bits>(bits & ((1u << n) - 1)); }
  // Sums of 16 bits, without sign.
  static __m256 load_counts(const std::uint16_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p))));
  }
  // a * b + c of integers whose product and sum are below 2^24.
  static __m256 exact_multiply_add(__m256 a, __m256 b, __m256 c) { return _mm256_add_ps(_mm256_mul_ps(a, b), c); }
  static __m256 load_partial(const float* p, int n) { return load_floats<1>(p, n); }
  static __m256 max(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }  // b where one is NaN; so is min
  static __m256 min(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
  static __m256 positive_or(__m256 x, __m256 otherwise) {
    return _mm256_blendv_ps(otherwise, x, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ));
  }
  static void store_partial(float* p, __m256 x, int n) {
    if (n >= kLanes) {
      _mm256_storeu_ps(p, x);
    } else {
      _mm256_maskstore_ps(p, first_lanes(n), x);
    }
  }

  struct Accumulator {
    __m256 value;
    void open(const float* sums) { value = _mm256_load_ps(sums); }
    void add(__m256 x) { value = _mm256_add_ps(value, x); }
    void close(float* sums) const { _mm256_store_ps(sums, value); }
  };
};

struct I8x32 {
  using Element = std::int8_t;
  using Sum = std::int16_t;
  static constexpr int kLanes = 32;

  static __m256i load(const std::int8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  static __m256i load_unaligned(const std::int8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static __m256i zero() { return _mm256_setzero_si256(); }
  static void store(std::int8_t* p, __m256i x) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), x); }
  static void store_unaligned(std::int8_t* p, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  static __m256i add(__m256i a, __m256i b) { return _mm256_add_epi8(a, b); }
  static __m256i sub(__m256i a, __m256i b) { return _mm256_sub_epi8(a, b); }
  static __m256i bit_and(__m256i a, __m256i b) { return _mm256_and_si256(a, b); }
  static __m256i negate(__m256i a) { return _mm256_sub_epi8(_mm256_setzero_si256(), a); }

  template <int kStep>
  static __m256i load_input(const float* p, int n, bool /*binarize*/, bool sign_zero) {
    const auto eight = [&](int first) {
      return n > first ? sign_of(load_floats<kStep>(p + kStep * first, n - first), sign_zero) : _mm256_setzero_si256();
    };
    const __m256i low = _mm256_packs_epi32(eight(0), eight(8));
    const __m256i high = _mm256_packs_epi32(eight(16), eight(24));
    // packs works within 128-bit halves, which leaves groups of four in the order 0 2 4 6 1 3 5 7.
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }

  // Bytes hold the sums of one block of units: at most kBinaryUnitsPerBlock of them (families/rows/family.cpp).
  struct Accumulator {
    __m256i value;
    void open(const std::int16_t*) { value = _mm256_setzero_si256(); }
    void add(__m256i x) { value = _mm256_add_epi8(value, x); }
    void close(std::int16_t* sums) const {
      auto* out = reinterpret_cast<__m256i*>(sums);
      const __m256i low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(value));
      const __m256i high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(value, 1));
      _mm256_store_si256(out, _mm256_add_epi16(_mm256_load_si256(out), low));
      _mm256_store_si256(out + 1, _mm256_add_epi16(_mm256_load_si256(out + 1), high));
    }
  };
};

}  // namespace
}  // namespace subbit
