// The last step of the families whose lanes are output channels, for AVX2.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/epilogue/finish.h"
#include "cpu/epilogue/tasks.h"
#include "cpu/simd/vec_avx2.h"

namespace subbit {
namespace {

// Columns become rows: x[i] lane j goes to x[j] lane i, by pairs of 32-bit lanes, of 64-bit lanes, of halves.
inline void transpose(__m256 x[8]) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m256d a = _mm256_castps_pd(t[i + j]), b = _mm256_castps_pd(t[i + j + 2]);
      x[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
      x[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    }
  }
  for (int i = 0; i < 4; ++i) {
    const __m256 a = x[i], b = x[i + 4];
    x[i] = _mm256_permute2f128_ps(a, b, 0x20);
    x[i + 4] = _mm256_permute2f128_ps(a, b, 0x31);
  }
}

// Outputs that lie pixel by pixel. Everything but a residual is done before blocks of 8 x 8 are transposed.
inline void finish_by_pixels(const FinishTask& task) {
  for (std::int64_t o = 0; o < task.outputs; o += 8) {
    const Channels<F32x8> channels(task, o);
    float* y = task.y + o * task.y_channel;
    for (int first = 0; first < task.pixels; first += 8) {
      const int columns = lanes_of<F32x8>(task.pixels - first);
      __m256 block[8];
      if (task.residual) {
        scale_block<F32x8, 8>(task, channels, first, columns, block);
      } else {
        finish_block<F32x8, 8>(task, channels, first, columns, block);
      }
      transpose(block);
      float* out = y + first * task.y_pixel;
      if (!task.residual && task.y_pixel == 1 && channels.count == 8 && columns == 8) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) _mm256_storeu_ps(out + i * task.y_channel, block[i]);
        continue;
      }
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        if (i >= channels.count) continue;
        __m256 v = block[i];
        if (task.residual) {
          v = finish_pixels<F32x8>(task, o + i, first, columns, v, broadcast_channel<F32x8>(task.slope, o + i, 0),
                                   broadcast_channel<F32x8>(task.shift, o + i, 0));
        }
        store_spaced<F32x8>(out + i * task.y_channel, task.y_pixel, columns, v);
      }
    }
  }
}

// Sums [pixel][output] of 16 bits.
inline void finish_by_pixel(const FinishTask& task) {
  if (!task.y || task.y_channel == 1) {
    finish_by_channels<F32x8, 8>(task);
  } else {
    finish_by_pixels(task);
  }
}

}  // namespace
}  // namespace subbit
