// The steps of the rows family over a vector type V, for the ISA files to instantiate. V says how many lanes
// it has, what its elements are, and how to load, store, add and subtract them (see vec_*.h).
//
// Everything is static: an ISA file's instance must never be the one that the linker keeps for another's.
#pragma once

#include <cstdint>

#include "cpu/epilogue/finish.h"
#include "cpu/epilogue/tasks.h"
#include "cpu/families/rows/tasks.h"
#include "cpu/families/stage_task.h"
#include "cpu/simd/store_words.h"
#include "cpu/simd/transpose.h"

namespace subbit {
namespace {

// `count` elements, `step` apart in the input, one after the other. What is stored after them is overwritten later.
template <class V>
inline void stage_run(const StageTask& task, const float* x, std::int64_t count, typename V::Element* out) {
  for (std::int64_t i = 0; i < count; i += V::kLanes) {
    const int n = count - i < V::kLanes ? static_cast<int>(count - i) : V::kLanes;
    if (task.step == 1) {
      V::store_unaligned(out + i, V::template load_input<1>(x + i, n, task.binarize, task.sign_zero));
    } else if (task.step == 2) {
      V::store_unaligned(out + i, V::template load_input<2>(x + 2 * i, n, task.binarize, task.sign_zero));
    } else {
      float gathered[V::kLanes];
      for (int j = 0; j < n; ++j) gathered[j] = x[(i + j) * task.step];
      V::store_unaligned(out + i, V::template load_input<1>(gathered, n, task.binarize, task.sign_zero));
    }
  }
}

template <class V>
inline void stage_zeros(typename V::Element* begin, const typename V::Element* end) {
  for (; begin < end; begin += V::kLanes) V::store_unaligned(begin, V::zero());
}

template <class V>
inline void stage_rows(const StageTask& task) {
  auto* plane = static_cast<typename V::Element*>(task.plane);
  stage_zeros<V>(plane, plane + task.inside_begin * task.columns);
  const bool gapless = task.step == 1 && task.count == task.columns && task.row_step == task.columns;
  if (gapless) {
    stage_run<V>(task, task.x, (task.inside_end - task.inside_begin) * task.columns,
                 plane + task.inside_begin * task.columns);
  } else {
    for (std::int64_t row = task.inside_begin; row < task.inside_end; ++row) {
      auto* out = plane + row * task.columns;
      stage_zeros<V>(out, out + task.before);
      stage_run<V>(task, task.x + (row - task.inside_begin) * task.row_step, task.count, out + task.before);
      stage_zeros<V>(out + task.before + task.count, out + task.columns);
    }
  }
  stage_zeros<V>(plane + task.inside_end * task.columns, plane + task.rows * task.columns);
}

// A sum with both signs, as RowTerms counts them.
template <class V, int kRowElements, class Vector>
inline void store_signed(typename V::Element* out, Vector sum) {
  V::store(out, sum);
  V::store(out + kRowElements, V::negate(sum));
}

template <class V, int kRowElements>
inline void sums_3x3(const RespondRowsTask& task, std::int64_t unit, int lane, typename V::Element* sums) {
  using T = typename V::Element;
  const auto at = [&](const void* p, std::int64_t bytes) {
    return V::load_unaligned(reinterpret_cast<const T*>(static_cast<const char*>(p) + bytes) + lane);
  };
  for (int r = 0; r < 3; ++r) {
    const std::int64_t start = unit * task.unit_bytes;
    const auto x0 = V::bit_and(at(task.row[r], start + task.first_tap), at(task.first_mask, 0));
    const auto x1 = at(task.row[r], start);
    const auto x2 = V::bit_and(at(task.row[r], start + task.last_tap), at(task.last_mask, 0));
    const auto plus = V::add(x0, x1), minus = V::sub(x0, x1);
    T* out = sums + 2 * r * kPatternsOfRow * kRowElements + lane;
    store_signed<V, kRowElements>(out, V::add(plus, x2));
    store_signed<V, kRowElements>(out + 2 * kRowElements, V::sub(plus, x2));
    store_signed<V, kRowElements>(out + 4 * kRowElements, V::add(minus, x2));
    store_signed<V, kRowElements>(out + 6 * kRowElements, V::sub(minus, x2));
  }
}

// (x0 +- x1) +- (x2 +- x3). The sign in the middle is that of x2, so the one inside the second pair is minus where
// the signs of x2 and x3 differ.
template <class V, int kRowElements>
inline void sums_8x1x1(const RespondRowsTask& task, std::int64_t unit, int lane, typename V::Element* sums) {
  using T = typename V::Element;
  const auto channel = [&](int c) {
    const auto* p = static_cast<const char*>(task.channels) + unit * task.unit_bytes + c * task.channel_bytes;
    return V::load_unaligned(reinterpret_cast<const T*>(p) + lane);
  };
  for (int half = 0; half < 2; ++half) {
    const auto x0 = channel(4 * half), x1 = channel(4 * half + 1);
    const auto x2 = channel(4 * half + 2), x3 = channel(4 * half + 3);
    const auto plus = V::add(x2, x3), minus = V::sub(x2, x3);
    T* out = sums + 2 * half * kPatternsOfHalf * kRowElements + lane;
    for (int minus1 = 0; minus1 < 2; ++minus1, out += 8 * kRowElements) {
      const auto pair = minus1 ? V::sub(x0, x1) : V::add(x0, x1);
      store_signed<V, kRowElements>(out, V::add(pair, plus));
      store_signed<V, kRowElements>(out + 2 * kRowElements, V::add(pair, minus));
      store_signed<V, kRowElements>(out + 4 * kRowElements, V::sub(pair, minus));
      store_signed<V, kRowElements>(out + 6 * kRowElements, V::sub(pair, plus));
    }
  }
}

template <class V, int kVectors>
inline void respond_rows(const RespondRowsTask& task) {
  using T = typename V::Element;
  constexpr int kRowElements = V::kLanes * kVectors;
  T* sums = static_cast<T*>(task.scratch);
  for (std::int64_t unit = 0; unit < task.units; ++unit) {
    for (int lane = 0; lane < kRowElements; lane += V::kLanes) {
      if (task.unit == Unit::k3x3) {
        sums_3x3<V, kRowElements>(task, unit, lane, sums);
      } else {
        sums_8x1x1<V, kRowElements>(task, unit, lane, sums);
      }
      char* row = static_cast<char*>(task.rows) + (unit * kRowElements + lane) * std::int64_t{sizeof(T)};
      for (std::int64_t k = 0; k < task.codewords; ++k, row += task.row_bytes) {
        const RowTerms& terms = task.terms[k];
        auto sum = V::add(V::load(sums + terms.part[0] + lane), V::load(sums + terms.part[1] + lane));
        if (task.unit == Unit::k3x3) sum = V::add(sum, V::load(sums + terms.part[2] + lane));
        V::store(reinterpret_cast<T*>(row), sum);
      }
    }
  }
}

// Adds a block's responses to the sums of `outputs` channels, four channels at a time so that their
// additions overlap. V::Accumulator holds the running sums of a row's first kVectors vectors.
template <class V, int kVectors, int kRowElements>
inline void gather_rows(const GatherRowsTask& task) {
  const char* rows = static_cast<const char*>(task.rows);
  const std::uint16_t* offsets = task.offsets;
  auto* sums = static_cast<typename V::Sum*>(task.sums);
  for (std::int64_t o = 0; o < task.outputs; o += kOutputsPerStep) {
    typename V::Accumulator acc[kOutputsPerStep][kVectors];
    for (int i = 0; i < kOutputsPerStep; ++i) {
      for (int v = 0; v < kVectors; ++v) acc[i][v].open(sums + i * kRowElements + v * V::kLanes);
    }
    for (int u = 0; u < task.units; ++u) {
      for (int four = 0; four < kOutputsPerStep; four += 4, offsets += 4) {
        // Four offsets at a time: the vectors keep both load ports busy, so shifting is cheaper than loading each.
        std::uint64_t packed;
        __builtin_memcpy(&packed, offsets, sizeof(packed));
        for (int i = four; i < four + 4; ++i, packed >>= 16) {
          const auto* row = reinterpret_cast<const typename V::Element*>(rows + (packed & 0xffff));
          for (int v = 0; v < kVectors; ++v) acc[i][v].add(V::load(row + v * V::kLanes));
        }
      }
    }
    for (int i = 0; i < kOutputsPerStep; ++i) {
      for (int v = 0; v < kVectors; ++v) acc[i][v].close(sums + i * kRowElements + v * V::kLanes);
    }
    sums += kOutputsPerStep * kRowElements;
  }
}

// F is the float vector of the level; F::load_sums reads sums of either kind as floats. Channel by channel over several
// tiles, so that neighbouring lines of the output are written one after the other.
template <class F, class Sum, int kRowElements>
inline void finish_rows(const FinishTask& task) {
  const Sum* sums = static_cast<const Sum*>(task.sums);
  for (std::int64_t o = 0; o < task.outputs; ++o) {
    const auto scale = broadcast_channel<F>(task.scale, o, 1), bias = broadcast_channel<F>(task.bias, o, 0);
    const auto slope = broadcast_channel<F>(task.slope, o, 0), shift = broadcast_channel<F>(task.shift, o, 0);
    float* y = task.y + o * task.y_channel;
    for (int p = 0; p < task.pixels; p += F::kLanes) {
      const int n = task.pixels - p < F::kLanes ? task.pixels - p : F::kLanes;
      const Sum* sum = sums + p / kRowElements * task.sums_stride + o * kRowElements + p % kRowElements;
      auto value = F::add(F::mul(F::load_sums(sum), scale), bias);
      value = finish_pixels<F>(task, o, p, n, value, slope, shift);
      if (task.y_pixel == 1) {
        F::store_partial(y + p, value, n);
      } else {
        store_spaced<F>(y + p * task.y_pixel, task.y_pixel, n, value);
      }
    }
  }
}

// Masks of signs, a word of pixels per channel, transposed.
template <class F>
inline void pack_rows(const PackTask& task) {
  const Words& out = task.words;
  for (std::int64_t first = 0; first < task.pixels; first += 64) {
    const int n = task.pixels - first < 64 ? static_cast<int>(task.pixels - first) : 64;
    for (std::int64_t word = 0; 64 * word < task.channels; ++word) {
      std::uint64_t plus[64] = {}, nonzero[64] = {};
      for (int c = 0; c < 64 && 64 * word + c < task.channels; ++c) {
        const std::int64_t channel = 64 * word + c;
        const float* x = task.x + channel * task.x_channel + first * task.x_pixel;
        const auto shift = F::broadcast(out.shift ? out.shift[channel] : 0);
        for (int p = 0; p < n; p += F::kLanes) {
          const int lanes = n - p < F::kLanes ? n - p : F::kLanes;
          const auto v = F::add(load_spaced<F>(x + p * task.x_pixel, task.x_pixel, lanes), shift);
          const std::uint64_t used = (std::uint64_t{1} << lanes) - 1;
          const std::uint64_t bits = used & (out.sign_zero ? F::not_negative_bits(v) : F::positive_bits(v));
          plus[c] |= bits << p;
          nonzero[c] |= (bits | (used & F::negative_bits(v))) << p;
        }
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
