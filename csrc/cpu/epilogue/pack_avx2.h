// Signs of floats as words of 64 channels, for AVX2. This is no template over the vector type: where pixels lie next to
// each other AVX2 collects a bit per channel in lanes of 32 bits, while AVX-512 has masks and transposes them with GFNI
// (pack_avx512vbmi.h).
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/epilogue/finish.h"
#include "cpu/families/rows/steps.h"
#include "cpu/simd/store_words.h"
#include "cpu/simd/vec_avx2.h"

namespace subbit {
namespace {

// Where pixels lie next to each other they are the lanes, and every channel gives them one bit of a half of the word:
// there is nothing to transpose. kVectors vectors of eight pixels, of which the first n are there.
template <int kVectors, bool kWhole, bool kSignZero>
inline void pack_half(const PackTask& task, std::int64_t first, int n, std::int64_t channel, __m256i (&plus)[kVectors],
                      __m256i (&nonzero)[kVectors]) {
  const __m256 zero = _mm256_setzero_ps();
  const std::int64_t end = channel + 32 < task.channels ? channel + 32 : task.channels;
  const float* shift = task.words.shift;
  __m256i positive[kVectors], negative[kVectors];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) positive[v] = negative[v] = _mm256_setzero_si256();
  __m256i bit = _mm256_set1_epi32(1);
  const float* x = task.x + channel * task.x_channel + first;
  for (std::int64_t c = channel; c < end; ++c, x += task.x_channel) {
    _mm_prefetch(reinterpret_cast<const char*>(x + 64), _MM_HINT_T0);  // of the next pixels; 64 streams are too many
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      __m256 value = kWhole ? _mm256_loadu_ps(x + 8 * v) : _mm256_maskload_ps(x + 8 * v, first_lanes(n - 8 * v));
      if (shift) value = _mm256_add_ps(value, _mm256_set1_ps(shift[c]));
      const __m256 is_plus = _mm256_cmp_ps(value, zero, kSignZero ? _CMP_GE_OQ : _CMP_GT_OQ);
      const __m256 is_minus = _mm256_cmp_ps(value, zero, _CMP_LT_OQ);
      positive[v] = _mm256_or_si256(positive[v], _mm256_and_si256(_mm256_castps_si256(is_plus), bit));
      negative[v] = _mm256_or_si256(negative[v], _mm256_and_si256(_mm256_castps_si256(is_minus), bit));
    }
    bit = _mm256_add_epi32(bit, bit);
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    plus[v] = positive[v];
    nonzero[v] = _mm256_or_si256(positive[v], negative[v]);
  }
}

template <int kVectors>
inline void store_halves(const __m256i (&low)[kVectors], const __m256i (&high)[kVectors], int n, std::uint64_t* words,
                         std::int64_t stride) {
  alignas(32) std::uint64_t pixels[8 * kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const __m256i a = _mm256_unpacklo_epi32(low[v], high[v]);  // pixels 0, 1, 4, 5
    const __m256i b = _mm256_unpackhi_epi32(low[v], high[v]);
    auto* four = reinterpret_cast<__m256i*>(pixels + 8 * v);
    _mm256_store_si256(four, _mm256_permute2x128_si256(a, b, 0x20));
    _mm256_store_si256(four + 1, _mm256_permute2x128_si256(a, b, 0x31));
  }
  store_words(pixels, n, words, stride);
}

template <int kVectors, bool kWhole, bool kSignZero>
inline void pack_neighbours(const PackTask& task, std::int64_t first, int n) {
  const Words& out = task.words;
  for (std::int64_t word = 0; word * kWordChannels < task.channels; ++word) {
    __m256i plus[2][kVectors], nonzero[2][kVectors];
    for (int half = 0; half < 2; ++half) {
      pack_half<kVectors, kWhole, kSignZero>(task, first, n, word * kWordChannels + half * 32, plus[half],
                                             nonzero[half]);
    }
    const std::int64_t at = first * out.stride + word;
    store_halves(plus[0], plus[1], n, out.plus + at, out.stride);
    if (out.nonzero) store_halves(nonzero[0], nonzero[1], n, out.nonzero + at, out.stride);
  }
}

template <bool kSignZero>
inline void pack_neighbours(const PackTask& task) {
  std::int64_t p = 0;
  for (; p + 16 <= task.pixels; p += 16) pack_neighbours<2, true, kSignZero>(task, p, 16);
  const int left = static_cast<int>(task.pixels - p);
  if (left > 8) return pack_neighbours<2, false, kSignZero>(task, p, left);
  if (left > 0) return pack_neighbours<1, false, kSignZero>(task, p, left);
}

// Channels lie next to each other, or pixels do, or neither.
inline void pack(const PackTask& task) {
  if (task.x_channel == 1) {
    for (std::int64_t p = 0; p < task.pixels; ++p) {
      for (std::int64_t c = 0; c < task.channels; c += 8) {
        const int n = lanes_of<F32x8>(task.channels - c);
        store_signs<F32x8>(task.words, p, c, n, F32x8::load_partial(task.x + p * task.x_pixel + c, n));
      }
      store_no_signs<F32x8>(task.words, p, task.channels);
    }
    return;
  }
  if (task.x_pixel != 1) return pack_rows<F32x8>(task);
  if (task.words.sign_zero) {
    pack_neighbours<true>(task);
  } else {
    pack_neighbours<false>(task);
  }
}

}  // namespace
}  // namespace subbit
