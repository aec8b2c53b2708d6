// The last step of the families whose lanes are output channels.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/epilogue/tasks.h"

namespace subbit {
namespace {

inline __mmask16 first_lanes(std::int64_t n) { return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }

// Sixteen floats of a channel's vector, or `otherwise` if there is none.
inline __m512 load_channels(const float* vector, std::int64_t first, __mmask16 lanes, float otherwise) {
  return vector ? _mm512_maskz_loadu_ps(lanes, vector + first) : _mm512_set1_ps(otherwise);
}

// max and min give their second operand where one is NaN.
inline __m512 activate(__m512 v, Activation activation, __m512 slope) {
  const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1);
  switch (activation) {
    case Activation::kRelu:
      return _mm512_max_ps(zero, v);
    case Activation::kHardtanh:
      return _mm512_min_ps(one, _mm512_max_ps(_mm512_sub_ps(zero, one), v));
    case Activation::kPrelu:
      return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(v, zero, _CMP_GT_OQ), _mm512_mul_ps(v, slope), v);
    case Activation::kNone:
      break;
  }
  return v;
}

// The signs of channels first .. first + 15 of a pixel.
inline void store_signs(const Words& words, std::int64_t pixel, std::int64_t first, __mmask16 lanes, __m512 v) {
  const __m512 zero = _mm512_setzero_ps();
  if (words.shift) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(lanes, words.shift + first));
  const __mmask16 plus = words.sign_zero ? _mm512_mask_cmp_ps_mask(lanes, v, zero, _CMP_GE_OQ)
                                         : _mm512_mask_cmp_ps_mask(lanes, v, zero, _CMP_GT_OQ);
  const auto store = [&](std::uint64_t* out, std::uint16_t bits) {
    __builtin_memcpy(reinterpret_cast<char*>(out + pixel * words.stride) + first / 8, &bits, sizeof(bits));
  };
  store(words.plus, plus);
  if (words.nonzero) {
    store(words.nonzero, static_cast<std::uint16_t>(plus | _mm512_mask_cmp_ps_mask(lanes, v, zero, _CMP_LT_OQ)));
  }
}

// Sixteen floats `step` apart, or fewer, n >= 1.
inline __m512 load_floats(const float* p, std::int64_t step, int n) {
  if (step == 1) return _mm512_maskz_loadu_ps(first_lanes(n), p);
  alignas(64) float lanes[16] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i * step];
  return _mm512_load_ps(lanes);
}

inline void store_floats(float* p, std::int64_t step, int n, __m512 v) {
  if (step == 1) return _mm512_mask_storeu_ps(p, first_lanes(n), v);
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, v);
  for (int i = 0; i < n; ++i) p[i * step] = lanes[i];
}

// A multiply-add of integers below 2^24 is exact.
inline __m512 exact_sum(__m256i sum, __m512 factor, __m512 offset) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(sum)), factor, offset);
}

// Lanes are channels of one pixel: for outputs that lie channel by channel, and for signs.
inline void finish_by_channels(const FinishTask& task) {
  const auto* sums = static_cast<const std::uint16_t*>(task.sums);
  const __m512 factor = _mm512_set1_ps(task.factor);
  for (std::int64_t o = 0; o < task.outputs; o += 16) {
    const __mmask16 lanes = first_lanes(task.outputs - o);
    const int channels = task.outputs - o < 16 ? static_cast<int>(task.outputs - o) : 16;
    const __m512 scale = load_channels(task.scale, o, lanes, 1), bias = load_channels(task.bias, o, lanes, 0);
    const __m512 slope = load_channels(task.slope, o, lanes, 0), shift = load_channels(task.shift, o, lanes, 0);
    for (int p = 0; p < task.pixels; ++p) {
      const __m256i sum = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums + p * task.sums_stride + o));
      __m512 v = exact_sum(sum, factor, _mm512_set1_ps(task.offset[p]));
      v = _mm512_add_ps(_mm512_mul_ps(v, scale), bias);
      if (task.residual) {
        const float* residual = task.residual + p * task.residual_pixel + o * task.residual_channel;
        v = _mm512_add_ps(v, load_floats(residual, task.residual_channel, channels));
      }
      v = _mm512_add_ps(activate(v, task.activation, slope), shift);
      if (task.y) store_floats(task.y + p * task.y_pixel + o * task.y_channel, task.y_channel, channels, v);
      if (task.words.plus) store_signs(task.words, p, o, lanes, v);
    }
  }
  // Words have room for more channels than there are.
  for (std::int64_t o = (task.outputs + 15) / 16 * 16; task.words.plus && o % 64 != 0; o += 16) {
    for (int p = 0; p < task.pixels; ++p) store_signs(task.words, p, o, 0, _mm512_setzero_ps());
  }
}

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
  const auto* sums = static_cast<const std::uint16_t*>(task.sums);
  const __m512 factor = _mm512_set1_ps(task.factor);
  for (int first = 0; first < task.pixels; first += 32) {
    const int pixels = task.pixels - first < 32 ? task.pixels - first : 32;
    const __m512 offset[2] = {_mm512_loadu_ps(task.offset + first), _mm512_loadu_ps(task.offset + first + 16)};
    for (std::int64_t o = 0; o < task.outputs; o += 16) {
      __m512i block[16];
      transpose_sums(sums + first * task.sums_stride + o, task.sums_stride, block);
      const int rows = task.outputs - o < 16 ? static_cast<int>(task.outputs - o) : 16;
      for (int i = 0; i < rows; ++i) {
        const std::int64_t c = o + i;
        const __m512 scale = _mm512_set1_ps(task.scale ? task.scale[c] : 1);
        const __m512 bias = _mm512_set1_ps(task.bias ? task.bias[c] : 0);
        for (int half = 0; 16 * half < pixels; ++half) {
          const int p = first + 16 * half, n = task.pixels - p < 16 ? task.pixels - p : 16;
          const __m256i sum = half == 0 ? _mm512_castsi512_si256(block[i]) : _mm512_extracti64x4_epi64(block[i], 1);
          __m512 v = exact_sum(sum, factor, offset[half]);
          v = _mm512_add_ps(_mm512_mul_ps(v, scale), bias);
          if constexpr (!kPlain) {
            if (task.residual) {
              const float* residual = task.residual + c * task.residual_channel + p * task.residual_pixel;
              v = _mm512_add_ps(v, load_floats(residual, task.residual_pixel, n));
            }
            v = activate(v, task.activation, _mm512_set1_ps(task.slope ? task.slope[c] : 0));
            v = _mm512_add_ps(v, _mm512_set1_ps(task.shift ? task.shift[c] : 0));
          }
          store_floats(task.y + c * task.y_channel + p * task.y_pixel, task.y_pixel, n, v);
        }
      }
    }
  }
}

// Sums [pixel][output] of 16 bits, as the patches and bits families have them, of whole groups of 32 pixels.
inline void finish_by_pixel(const FinishTask& task) {
  if (!task.y || task.y_channel == 1) {
    finish_by_channels(task);
  } else if (!task.residual && !task.shift && task.activation == Activation::kNone) {
    finish_by_pixels<true>(task);
  } else {
    finish_by_pixels<false>(task);
  }
}

}  // namespace
}  // namespace subbit
