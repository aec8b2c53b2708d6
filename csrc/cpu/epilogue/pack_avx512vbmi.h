// Signs of floats as words of 64 channels, for AVX-512 with VBMI and GFNI.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/epilogue/finish.h"
#include "cpu/simd/bits_avx512vbmi.h"
#include "cpu/simd/store_words.h"
#include "cpu/simd/transpose_avx512vbmi.h"
#include "cpu/simd/vec_avx512.h"

namespace subbit {
namespace {

// Channels lie next to each other, or pixels do (a word per channel then, transposed), or neither.
inline void pack(const PackTask& task) {
  const Words& out = task.words;
  if (task.x_channel == 1) {
    for (std::int64_t c = 0; c < (task.channels + 63) / 64 * 64; c += 16) {
      const std::int64_t left = task.channels - c;
      const int n = left > 0 ? lanes_of<F32x16>(left) : 0;
      for (std::int64_t p = 0; p < task.pixels; ++p) {
        store_signs<F32x16>(out, p, c, n, F32x16::load_partial(task.x + p * task.x_pixel + c, n));
      }
    }
    return;
  }
  for (std::int64_t first = 0; first < task.pixels; first += 64) {
    const int n = task.pixels - first < 64 ? static_cast<int>(task.pixels - first) : 64;
    for (std::int64_t word = 0; 64 * word < task.channels; ++word) {
      alignas(64) std::uint64_t plus[64] = {}, nonzero[64] = {};
      const int channels = task.channels - 64 * word < 64 ? static_cast<int>(task.channels - 64 * word) : 64;
      for (int c = 0; c < channels; ++c) {
        const float* x = task.x + (64 * word + c) * task.x_channel + first * task.x_pixel;
        Bits bits;
        if (out.shift) {
          float shifted[64];
          for (int i = 0; i < n; ++i) shifted[i] = x[i * task.x_pixel] + out.shift[64 * word + c];
          bits = load_bits(shifted, n, out.sign_zero);
        } else {
          bits = load_bits(x, task.x_pixel, n, out.sign_zero);
        }
        plus[c] = bits.low;
        nonzero[c] = ~(bits.low ^ bits.high);  // 0 is the only digit whose bits differ
      }
      const std::int64_t at = first * out.stride + word;
      transpose(plus);
      store_words(plus, n, out.plus + at, out.stride);
      if (out.nonzero) {
        transpose(nonzero);
        store_words(nonzero, n, out.nonzero + at, out.stride);
      }
    }
  }
}

}  // namespace
}  // namespace subbit
