// The last step of the layouts whose lanes are output channels.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/kernel.h"

namespace subbit {
namespace {

// Columns become rows: x[i] lane j goes to x[j] lane i, by pairs of 32-bit lanes, of 64-bit lanes, of quarters.
inline void transpose(__m512 x[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
      x[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      x[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_shuffle_f32x4(x[i], x[i + 4], 0x88), b = _mm512_shuffle_f32x4(x[i], x[i + 4], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xdd);
    t[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    t[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    t[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) x[i] = t[i];
}

inline __mmask16 first_lanes(std::int64_t n) { return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }

// Sums [pixel][output] of 16 bits, as the patches and bits layouts have them.
inline void finish_by_pixel(const FinishTask& task) {
  const auto* sums = static_cast<const std::uint16_t*>(task.sums);
  for (std::int64_t o = 0; o < task.outputs; o += 16) {
    const __mmask16 channels = first_lanes(task.outputs - o);
    const __m512 scale = task.scale ? _mm512_maskz_loadu_ps(channels, task.scale + o) : _mm512_set1_ps(1);
    const __m512 bias = task.bias ? _mm512_maskz_loadu_ps(channels, task.bias + o) : _mm512_setzero_ps();
    const auto value = [&](int p) {
      const __m256i sum = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums + p * task.sums_stride + o));
      const __m512 exact = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(sum)), _mm512_set1_ps(task.factor),
                                           _mm512_set1_ps(task.offset[p]));
      return _mm512_add_ps(_mm512_mul_ps(exact, scale), bias);
    };
    float* y = task.y + o * task.y_channel;
    if (task.y_channel == 1) {
      for (int p = 0; p < task.pixels; ++p) _mm512_mask_storeu_ps(y + p * task.y_pixel, channels, value(p));
      continue;
    }
    const int rows = task.outputs - o < 16 ? static_cast<int>(task.outputs - o) : 16;
    for (int first = 0; first < task.pixels; first += 16) {
      const int columns = task.pixels - first < 16 ? task.pixels - first : 16;
      __m512 block[16];
      for (int i = 0; i < 16; ++i) block[i] = i < columns ? value(first + i) : _mm512_setzero_ps();
      transpose(block);
      for (int i = 0; i < rows; ++i) {
        float* row = y + i * task.y_channel + first * task.y_pixel;
        if (task.y_pixel == 1) {
          _mm512_mask_storeu_ps(row, first_lanes(columns), block[i]);
        } else {
          alignas(64) float lanes[16];
          _mm512_store_ps(lanes, block[i]);
          for (int j = 0; j < columns; ++j) row[j * task.y_pixel] = lanes[j];
        }
      }
    }
  }
}

}  // namespace
}  // namespace subbit
