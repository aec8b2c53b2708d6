// The last step of the families whose lanes are output channels, and signs as words, eight floats at a time.
#pragma once

#include <immintrin.h>

#include <cstdint>

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

inline int at_most_eight(std::int64_t n) { return n < 8 ? static_cast<int>(n) : 8; }

// Up to eight floats of a channel's vector, or `otherwise` if there is none.
inline __m256 load_channels(const float* vector, std::int64_t first, int n, float otherwise) {
  return vector ? F32x8::load_partial(vector + first, n) : _mm256_set1_ps(otherwise);
}

// The activation of several vectors, whose kind is asked for once.
template <int kCount>
inline void activate(__m256 (&v)[kCount], Activation activation, __m256 slope) {
  const __m256 zero = F32x8::zero(), one = F32x8::broadcast(1), minus_one = F32x8::broadcast(-1);
  switch (activation) {
    case Activation::kRelu:
      for (auto& x : v) x = F32x8::max(zero, x);
      break;
    case Activation::kHardtanh:
      for (auto& x : v) x = F32x8::min(one, F32x8::max(minus_one, x));
      break;
    case Activation::kPrelu:
      for (auto& x : v) x = F32x8::positive_or(x, F32x8::mul(x, slope));
      break;
    case Activation::kNone:
      break;
  }
}

// The signs of channels first .. first + n - 1 of a pixel, as a byte of its words.
inline void store_signs(const Words& words, std::int64_t pixel, std::int64_t first, int n, __m256 v) {
  const auto used = static_cast<std::uint64_t>((1 << n) - 1);
  if (words.shift) v = _mm256_add_ps(v, F32x8::load_partial(words.shift + first, n));
  const std::uint64_t plus = used & (words.sign_zero ? F32x8::not_negative_bits(v) : F32x8::positive_bits(v));
  const std::int64_t byte = pixel * words.stride * std::int64_t{sizeof(*words.plus)} + first / 8;
  reinterpret_cast<std::uint8_t*>(words.plus)[byte] = static_cast<std::uint8_t>(plus);
  if (words.nonzero) {
    const std::uint64_t minus = used & F32x8::negative_bits(v);
    reinterpret_cast<std::uint8_t*>(words.nonzero)[byte] = static_cast<std::uint8_t>(plus | minus);
  }
}

// Words have room for more channels than there are.
inline void store_no_signs(const Words& words, std::int64_t pixel, std::int64_t channels) {
  for (std::int64_t c = (channels + 7) / 8 * 8; c % kWordChannels != 0; c += 8) {
    const std::int64_t byte = pixel * words.stride * std::int64_t{sizeof(*words.plus)} + c / 8;
    reinterpret_cast<std::uint8_t*>(words.plus)[byte] = 0;
    if (words.nonzero) reinterpret_cast<std::uint8_t*>(words.nonzero)[byte] = 0;
  }
}

// Up to eight floats, `step` apart.
inline __m256 load_floats(const float* p, std::int64_t step, int n) {
  if (step == 1) return F32x8::load_partial(p, n);
  alignas(32) float lanes[8] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i * step];
  return _mm256_load_ps(lanes);
}

inline void store_floats(float* p, std::int64_t step, int n, __m256 v) {
  if (step == 1) return F32x8::store_partial(p, v, n);
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, v);
  for (int i = 0; i < n; ++i) p[i * step] = lanes[i];
}

// What follows scale and bias, where lanes are pixels of one channel. Adding 0 changes nothing but the sign of a zero.
inline __m256 finish_channel(const FinishTask& task, std::int64_t channel, int first_pixel, int n, __m256 sum) {
  const float* residual =
      task.residual + channel * task.residual_channel + std::int64_t{first_pixel} * task.residual_pixel;
  __m256 v[1] = {_mm256_add_ps(sum, load_floats(residual, task.residual_pixel, n))};
  activate(v, task.activation, _mm256_set1_ps(task.slope ? task.slope[channel] : 0));
  return _mm256_add_ps(v[0], _mm256_set1_ps(task.shift ? task.shift[channel] : 0));
}

// Up to eight channels, where lanes are channels.
struct Channels {
  std::int64_t first;
  int count;
  __m256 scale, bias, slope, shift;
};

// Eight pixels of them, of which n are there. factor * sum + offset is an integer below 2^24, and so is the product:
// neither is rounded.
inline void finish_block(const FinishTask& task, const Channels& channels, int pixel, int n, bool residual_last,
                         __m256 (&v)[8]) {
  const auto* sums = static_cast<const std::uint16_t*>(task.sums) + channels.first;
  const __m256 factor = _mm256_set1_ps(task.factor);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const int p = pixel + (i < n ? i : 0);
    const __m128i sum = _mm_load_si128(reinterpret_cast<const __m128i*>(sums + p * task.sums_stride));
    const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(sum)), factor);
    const __m256 exact = _mm256_add_ps(product, _mm256_set1_ps(task.offset[p]));
    v[i] = _mm256_add_ps(_mm256_mul_ps(exact, channels.scale), channels.bias);
  }
  if (residual_last) return;
  if (task.residual) {
    const float* residual = task.residual + pixel * task.residual_pixel + channels.first * task.residual_channel;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      if (i >= n) continue;
      const float* of_pixel = residual + i * task.residual_pixel;
      v[i] = _mm256_add_ps(v[i], load_floats(of_pixel, task.residual_channel, channels.count));
    }
  }
  activate(v, task.activation, channels.slope);
  for (auto& x : v) x = _mm256_add_ps(x, channels.shift);
}

// Sums [pixel][output] of 16 bits. Outputs that lie channel by channel, and signs, need no transposition; of others
// everything but a residual is done before blocks of 8 x 8 are transposed.
inline void finish_by_pixel(const FinishTask& task) {
  const bool by_channels = !task.y || task.y_channel == 1;
  const bool residual_last = task.residual && !by_channels;
  for (std::int64_t o = 0; o < task.outputs; o += 8) {
    const int lanes = at_most_eight(task.outputs - o);
    const Channels channels{o,
                            lanes,
                            load_channels(task.scale, o, lanes, 1),
                            load_channels(task.bias, o, lanes, 0),
                            load_channels(task.slope, o, lanes, 0),
                            load_channels(task.shift, o, lanes, 0)};
    float* y = task.y + o * task.y_channel;
    for (int first = 0; first < task.pixels; first += 8) {
      const int columns = at_most_eight(task.pixels - first);
      __m256 block[8];
      finish_block(task, channels, first, columns, residual_last, block);
      if (by_channels) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          if (i >= columns) continue;
          if (task.y) store_floats(y + (first + i) * task.y_pixel, task.y_channel, lanes, block[i]);
          if (task.words.plus) store_signs(task.words, first + i, o, lanes, block[i]);
        }
        continue;
      }
      transpose(block);
      float* out = y + first * task.y_pixel;
      if (!residual_last && task.y_pixel == 1 && lanes == 8 && columns == 8) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) _mm256_storeu_ps(out + i * task.y_channel, block[i]);
        continue;
      }
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        if (i >= lanes) continue;
        const __m256 v = residual_last ? finish_channel(task, o + i, first, columns, block[i]) : block[i];
        store_floats(out + i * task.y_channel, task.y_pixel, columns, v);
      }
    }
  }
  for (int p = 0; task.words.plus && p < task.pixels; ++p) store_no_signs(task.words, p, task.outputs);
}

}  // namespace
}  // namespace subbit
