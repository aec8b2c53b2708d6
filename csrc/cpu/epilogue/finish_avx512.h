// The last step of the families whose lanes are output channels, for AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/epilogue/finish.h"
#include "cpu/epilogue/tasks.h"
#include "cpu/simd/vec_avx512.h"

namespace subbit {
namespace {

// Sums of sixteen outputs and 32 pixels, [pixel][output], to [output][pixel]. Registers begin as sixteen outputs of
// pixels i and 16 + i, and quarters of registers as eight outputs of a pixel; unpacking pairs, fours and eights of
// pixels makes them eight pixels of an output, and the last step joins the eights.
inline void transpose_sums(const std::uint16_t* sums, std::int64_t stride, __m512i out[16]) {
  const auto load = [&](int pixel) {
    const auto half = [&](int p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(sums + p * stride)); };
    return _mm512_inserti64x4(_mm512_castsi256_si512(half(pixel)), half(pixel + 16), 1);
  };
  __m512i eights[2][8];
  for (int group = 0; group < 2; ++group) {
    __m512i pairs[8], fours[8];
    for (int i = 0; i < 4; ++i) {
      const __m512i a = load(8 * group + 2 * i), b = load(8 * group + 2 * i + 1);
      pairs[2 * i] = _mm512_unpacklo_epi16(a, b);
      pairs[2 * i + 1] = _mm512_unpackhi_epi16(a, b);
    }
    for (int i = 0; i < 2; ++i) {
      for (int half = 0; half < 2; ++half) {
        const __m512i a = pairs[4 * i + half], b = pairs[4 * i + half + 2];
        fours[4 * i + 2 * half] = _mm512_unpacklo_epi32(a, b);
        fours[4 * i + 2 * half + 1] = _mm512_unpackhi_epi32(a, b);
      }
    }
    for (int i = 0; i < 4; ++i) {
      eights[group][2 * i] = _mm512_unpacklo_epi64(fours[i], fours[i + 4]);
      eights[group][2 * i + 1] = _mm512_unpackhi_epi64(fours[i], fours[i + 4]);
    }
  }
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  for (int i = 0; i < 8; ++i) {
    out[i] = _mm512_permutex2var_epi64(eights[0][i], low, eights[1][i]);
    out[i + 8] = _mm512_permutex2var_epi64(eights[0][i], high, eights[1][i]);
  }
}

// Lanes are pixels of one channel. kPlain: there is nothing but scale and bias.
template <bool kPlain>
inline void finish_by_pixels(const FinishTask& task) {
  using V = F32x16;
  const auto* sums = static_cast<const std::uint16_t*>(task.sums);
  const __m512 factor = V::broadcast(task.factor);
  for (int first = 0; first < task.pixels; first += 32) {
    const int pixels = task.pixels - first < 32 ? task.pixels - first : 32;
    const __m512 offset[2] = {_mm512_loadu_ps(task.offset + first), _mm512_loadu_ps(task.offset + first + 16)};
    for (std::int64_t o = 0; o < task.outputs; o += 16) {
      __m512i block[16];
      transpose_sums(sums + first * task.sums_stride + o, task.sums_stride, block);
      const int rows = lanes_of<V>(task.outputs - o);
      for (int i = 0; i < rows; ++i) {
        const std::int64_t c = o + i;
        const __m512 scale = broadcast_channel<V>(task.scale, c, 1);
        const __m512 bias = broadcast_channel<V>(task.bias, c, 0);
        const __m512 slope = broadcast_channel<V>(task.slope, c, 0), shift = broadcast_channel<V>(task.shift, c, 0);
        for (int half = 0; 16 * half < pixels; ++half) {
          const int p = first + 16 * half, n = lanes_of<V>(task.pixels - p);
          const __m256i sum = half == 0 ? _mm512_castsi512_si256(block[i]) : _mm512_extracti64x4_epi64(block[i], 1);
          __m512 v = V::exact_multiply_add(V::counts_of(sum), factor, offset[half]);
          v = V::add(V::mul(v, scale), bias);
          if constexpr (!kPlain) v = finish_pixels<V>(task, c, p, n, v, slope, shift);
          store_spaced<V>(task.y + c * task.y_channel + p * task.y_pixel, task.y_pixel, n, v);
        }
      }
    }
  }
}

// Sums [pixel][output] of 16 bits, as the patches and bits families have them, of whole groups of 32 pixels.
inline void finish_by_pixel(const FinishTask& task) {
  if (!task.y || task.y_channel == 1) {
    finish_by_channels<F32x16, 1>(task);
  } else if (!task.residual && !task.shift && task.activation == Activation::kNone) {
    finish_by_pixels<true>(task);
  } else {
    finish_by_pixels<false>(task);
  }
}

}  // namespace
}  // namespace subbit
