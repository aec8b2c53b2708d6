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

// What follows scale and bias, where lanes are channels of one pixel.
struct ChannelEpilogue {
  __m512 slope, shift;
  __mmask16 lanes;

  __m512 operator()(const FinishTask& task, std::int64_t first, int pixel, __m512 v) const {
    if (task.residual) {
      v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(lanes, task.residual + pixel * task.residual_pixel + first));
    }
    return _mm512_add_ps(activate(v, task.activation, slope), shift);
  }
};

// Sixteen neighbouring pixels of one channel, or fewer, `step` apart.
inline __m512 load_pixels(const float* p, std::int64_t step, int n) {
  if (step == 1) return _mm512_maskz_loadu_ps(first_lanes(n), p);
  alignas(64) float lanes[16] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i * step];
  return _mm512_load_ps(lanes);
}

inline void store_pixels(float* p, std::int64_t step, int n, __m512 v) {
  if (step == 1) return _mm512_mask_storeu_ps(p, first_lanes(n), v);
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, v);
  for (int i = 0; i < n; ++i) p[i * step] = lanes[i];
}

// The same, where lanes are pixels of one channel. Adding 0 changes nothing but the sign of a zero.
inline __m512 finish_channel(const FinishTask& task, std::int64_t channel, int first_pixel, int n, __m512 v) {
  const float* residual =
      task.residual + channel * task.residual_channel + std::int64_t{first_pixel} * task.residual_pixel;
  v = _mm512_add_ps(v, load_pixels(residual, task.residual_pixel, n));
  v = activate(v, task.activation, _mm512_set1_ps(task.slope ? task.slope[channel] : 0));
  return _mm512_add_ps(v, _mm512_set1_ps(task.shift ? task.shift[channel] : 0));
}

// Sums [pixel][output] of 16 bits, as the patches and bits layouts have them. Everything but a residual that lies
// channel by channel is done before blocks of 16 x 16 are transposed.
inline void finish_by_pixel(const FinishTask& task) {
  const auto* sums = static_cast<const std::uint16_t*>(task.sums);
  const bool residual_last = task.residual && task.residual_channel != 1;
  for (std::int64_t o = 0; o < task.outputs; o += 16) {
    const __mmask16 lanes = first_lanes(task.outputs - o);
    const __m512 scale = load_channels(task.scale, o, lanes, 1), bias = load_channels(task.bias, o, lanes, 0);
    const ChannelEpilogue epilogue{load_channels(task.slope, o, lanes, 0), load_channels(task.shift, o, lanes, 0),
                                   lanes};
    const auto value = [&](int p) {
      const __m256i sum = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums + p * task.sums_stride + o));
      const __m512 exact = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(sum)), _mm512_set1_ps(task.factor),
                                           _mm512_set1_ps(task.offset[p]));
      const __m512 v = _mm512_add_ps(_mm512_mul_ps(exact, scale), bias);
      return residual_last ? v : epilogue(task, o, p, v);
    };
    if (!task.y) {
      for (int p = 0; p < task.pixels; ++p) store_signs(task.words, p, o, lanes, value(p));
      continue;
    }
    float* y = task.y + o * task.y_channel;
    if (task.y_channel == 1 && !residual_last) {
      for (int p = 0; p < task.pixels; ++p) _mm512_mask_storeu_ps(y + p * task.y_pixel, lanes, value(p));
      continue;
    }
    const int rows = task.outputs - o < 16 ? static_cast<int>(task.outputs - o) : 16;
    for (int first = 0; first < task.pixels; first += 16) {
      const int columns = task.pixels - first < 16 ? task.pixels - first : 16;
      __m512 block[16];
      for (int i = 0; i < 16; ++i) block[i] = i < columns ? value(first + i) : _mm512_setzero_ps();
      transpose(block);
      for (int i = 0; i < rows; ++i) {
        const __m512 v = residual_last ? finish_channel(task, o + i, first, columns, block[i]) : block[i];
        store_pixels(y + i * task.y_channel + first * task.y_pixel, task.y_pixel, columns, v);
      }
    }
  }
  // Words have room for more channels than there are.
  for (std::int64_t o = (task.outputs + 15) / 16 * 16; !task.y && o % 64 != 0; o += 16) {
    for (int p = 0; p < task.pixels; ++p) store_signs(task.words, p, o, 0, _mm512_setzero_ps());
  }
}

}  // namespace
}  // namespace subbit
