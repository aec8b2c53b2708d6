// The last step over a vector type V of floats (simd/vec_*.h), for the ISA files: all of it where lanes are channels of
// one pixel, and what follows scale and bias where they are pixels of one channel. How lanes that were channels become
// pixels is not here: AVX2 transposes floats, and AVX-512 the sums, which have half their bits and need half the moves.
//
// Adding 0 changes nothing but the sign of a zero.
#pragma once

#include <cstdint>

#include "cpu/epilogue/tasks.h"

namespace subbit {
namespace {

// A channel's element of a vector in all lanes, or `otherwise` where there is none.
template <class V>
inline auto broadcast_channel(const float* vector, std::int64_t channel, float otherwise) {
  return V::broadcast(vector ? vector[channel] : otherwise);
}

template <class V>
inline int lanes_of(std::int64_t n) {
  return n < V::kLanes ? static_cast<int>(n) : V::kLanes;
}

// The first n of a vector of floats `step` apart, n >= 1; the others are not read and are 0.
template <class V>
inline auto load_spaced(const float* p, std::int64_t step, int n) {
  if (step == 1) return V::load_partial(p, n);
  alignas(4 * V::kLanes) float lanes[V::kLanes] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i * step];
  return V::load(lanes);
}

template <class V, class Vector>
inline void store_spaced(float* p, std::int64_t step, int n, Vector v) {
  if (step == 1) return V::store_partial(p, v, n);
  alignas(4 * V::kLanes) float lanes[V::kLanes];
  V::store(lanes, v);
  for (int i = 0; i < n; ++i) p[i * step] = lanes[i];
}

// The first n channels of a vector, or `otherwise` where there is none.
template <class V>
inline auto load_channels(const float* vector, std::int64_t first, int n, float otherwise) {
  return vector ? V::load_partial(vector + first, n) : V::broadcast(otherwise);
}

// The activation of several vectors, whose kind is asked for once. max and min give their second operand where one is
// NaN.
template <class V, class Vector, int kCount>
inline void activate(Vector (&v)[kCount], Activation activation, Vector slope) {
  switch (activation) {
    case Activation::kRelu:
      for (auto& x : v) x = V::max(V::broadcast(0), x);
      break;
    case Activation::kHardtanh:
      for (auto& x : v) x = V::min(V::broadcast(1), V::max(V::broadcast(-1), x));
      break;
    case Activation::kPrelu:
      for (auto& x : v) x = V::positive_or(x, V::mul(x, slope));
      break;
    case Activation::kNone:
      break;
  }
}

// What follows scale and bias, where lanes are n pixels of one channel, whose slope and shift are in all lanes.
template <class V, class Vector>
inline Vector finish_pixels(const FinishTask& task, std::int64_t channel, int first_pixel, int n, Vector sum,
                            Vector slope, Vector shift) {
  Vector v[1] = {sum};
  if (task.residual) {
    const float* residual =
        task.residual + channel * task.residual_channel + std::int64_t{first_pixel} * task.residual_pixel;
    v[0] = V::add(v[0], load_spaced<V>(residual, task.residual_pixel, n));
  }
  activate<V>(v, task.activation, slope);
  return V::add(v[0], shift);
}

// The vectors of up to V::kLanes channels.
template <class V>
struct Channels {
  using Vector = typename V::Vector;

  Channels(const FinishTask& task, std::int64_t first_channel)
      : first(first_channel),
        count(lanes_of<V>(task.outputs - first_channel)),
        scale(load_channels<V>(task.scale, first, count, 1)),
        bias(load_channels<V>(task.bias, first, count, 0)),
        slope(load_channels<V>(task.slope, first, count, 0)),
        shift(load_channels<V>(task.shift, first, count, 0)) {}

  std::int64_t first;
  int count;
  Vector scale, bias, slope, shift;
};

// Sums of channels with scale and bias: kPixels pixels, of which n are there. factor * sum + offset is an integer below
// 2^24, and so is the product: neither is rounded.
template <class V, int kPixels>
inline void scale_block(const FinishTask& task, const Channels<V>& channels, int pixel, int n,
                        typename V::Vector (&v)[kPixels]) {
  const auto* sums = static_cast<const std::uint16_t*>(task.sums) + channels.first;
  const auto factor = V::broadcast(task.factor);
#pragma GCC unroll 8
  for (int i = 0; i < kPixels; ++i) {
    const int p = pixel + (i < n ? i : 0);
    const auto sum = V::load_counts(sums + p * task.sums_stride);
    const auto exact = V::exact_multiply_add(sum, factor, V::broadcast(task.offset[p]));
    v[i] = V::add(V::mul(exact, channels.scale), channels.bias);
  }
}

// The same with all that follows.
template <class V, int kPixels>
inline void finish_block(const FinishTask& task, const Channels<V>& channels, int pixel, int n,
                         typename V::Vector (&v)[kPixels]) {
  scale_block<V, kPixels>(task, channels, pixel, n, v);
  if (task.residual) {
    const float* residual = task.residual + pixel * task.residual_pixel + channels.first * task.residual_channel;
#pragma GCC unroll 8
    for (int i = 0; i < kPixels; ++i) {
      if (i >= n) continue;
      const float* of_pixel = residual + i * task.residual_pixel;
      v[i] = V::add(v[i], load_spaced<V>(of_pixel, task.residual_channel, channels.count));
    }
  }
  activate<V>(v, task.activation, channels.slope);
  for (auto& x : v) x = V::add(x, channels.shift);
}

// Where the bits of channels first .. first + V::kLanes - 1 are in the words of a pixel.
inline char* bits_at(std::uint64_t* words, std::int64_t stride, std::int64_t pixel, std::int64_t first) {
  return reinterpret_cast<char*>(words + pixel * stride) + first / 8;
}

// The signs of n channels of a pixel; the other lanes' bits are 0.
template <class V, class Vector>
inline void store_signs(const Words& words, std::int64_t pixel, std::int64_t first, int n, Vector v) {
  using Bits = typename V::Bits;
  if (words.shift) v = V::add(v, V::load_partial(words.shift + first, n));
  const Bits plus = words.sign_zero ? V::not_negative_bits(v, n) : V::positive_bits(v, n);
  __builtin_memcpy(bits_at(words.plus, words.stride, pixel, first), &plus, sizeof(plus));
  if (words.nonzero) {
    const Bits nonzero = static_cast<Bits>(plus | V::negative_bits(v, n));
    __builtin_memcpy(bits_at(words.nonzero, words.stride, pixel, first), &nonzero, sizeof(nonzero));
  }
}

// Words have room for more channels than there are.
template <class V>
inline void store_no_signs(const Words& words, std::int64_t pixel, std::int64_t channels) {
  const typename V::Bits none = 0;
  for (std::int64_t c = (channels + V::kLanes - 1) / V::kLanes * V::kLanes; c % kWordChannels != 0; c += V::kLanes) {
    __builtin_memcpy(bits_at(words.plus, words.stride, pixel, c), &none, sizeof(none));
    if (words.nonzero) __builtin_memcpy(bits_at(words.nonzero, words.stride, pixel, c), &none, sizeof(none));
  }
}

// Sums [pixel][output] of 16 bits to outputs that lie channel by channel, and to signs; kPixels pixels at a time.
template <class V, int kPixels>
inline void finish_by_channels(const FinishTask& task) {
  for (std::int64_t o = 0; o < task.outputs; o += V::kLanes) {
    const Channels<V> channels(task, o);
    float* y = task.y + o * task.y_channel;
    for (int first = 0; first < task.pixels; first += kPixels) {
      const int n = task.pixels - first < kPixels ? task.pixels - first : kPixels;
      typename V::Vector block[kPixels];
      finish_block<V, kPixels>(task, channels, first, n, block);
#pragma GCC unroll 8
      for (int i = 0; i < kPixels; ++i) {
        if (i >= n) continue;
        if (task.y) store_spaced<V>(y + (first + i) * task.y_pixel, task.y_channel, channels.count, block[i]);
        if (task.words.plus) store_signs<V>(task.words, first + i, o, channels.count, block[i]);
      }
    }
  }
  for (int p = 0; task.words.plus && p < task.pixels; ++p) store_no_signs<V>(task.words, p, task.outputs);
}

}  // namespace
}  // namespace subbit
