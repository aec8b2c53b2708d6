// The steps of the rows layout over a vector type V, for the ISA files to instantiate. V says how many lanes
// it has, what its elements are, and how to load, store, add and subtract them (see vec_*.h).
//
// Everything is static: an ISA file's instance must never be the one that the linker keeps for another's.
#pragma once

#include <cstdint>

#include "cpu/kernel.h"

namespace subbit {
namespace {

// One line into scratch: zeros in front, elements, zeros up to the length and on to whole vectors.
template <class V, int kStep>
inline void load_elements(const Line& line, const StageTask& task, typename V::Element* out) {
  for (std::int64_t i = 0; i < line.count; i += V::kLanes) {
    const std::int64_t left = line.count - i;
    const int n = left < V::kLanes ? static_cast<int>(left) : V::kLanes;
    V::store_unaligned(out + i, V::template load_input<kStep>(line.x + i * kStep, n, task.binarize, task.sign_zero));
  }
}

template <class V>
inline void load_line(const Line& line, const StageTask& task, typename V::Element* out) {
  typename V::Element* end = out + line.length;
  for (std::int64_t i = 0; i < line.before; i += V::kLanes) V::store_unaligned(out + i, V::zero());
  out += line.before;
  if (line.step == 1) {
    load_elements<V, 1>(line, task, out);
  } else if (line.step == 2) {
    load_elements<V, 2>(line, task, out);
  } else {
    for (std::int64_t i = 0; i < line.count; i += V::kLanes) {
      float gathered[V::kLanes];
      const std::int64_t left = line.count - i;
      const int n = left < V::kLanes ? static_cast<int>(left) : V::kLanes;
      for (int j = 0; j < n; ++j) gathered[j] = line.x[(i + j) * line.step];
      V::store_unaligned(out + i, V::template load_input<1>(gathered, n, task.binarize, task.sign_zero));
    }
  }
  for (out += line.count; out < end; out += V::kLanes) V::store_unaligned(out, V::zero());
}

// The lines of one row, copied to scratch with their padding: for any step, and for elements that are not floats.
template <class V>
class CopiedLines {
 public:
  CopiedLines(const StageTask& task, std::int64_t row)
      : scratch_(static_cast<typename V::Element*>(task.scratch)), stride_(task.scratch_stride) {
    for (int l = 0; l < task.line_count; ++l) load_line<V>(line_of_row(task, l, row), task, scratch_ + l * stride_);
  }
  auto load(int l, std::int64_t at) const { return V::load_unaligned(scratch_ + l * stride_ + at); }

 private:
  typename V::Element* scratch_;
  std::int64_t stride_;
};

// The lines of one row where they are, floats `kStep` apart; masked loads give zeros for the padding.
template <class V, int kStep>
class LinesInPlace {
 public:
  LinesInPlace(const StageTask& task, std::int64_t row) : task_(task) {
    for (int l = 0; l < task.line_count; ++l) lines_[l] = line_of_row(task, l, row);
  }
  auto load(int l, std::int64_t at) const {
    const Line& line = lines_[l];
    return V::template load_window<kStep>(line.x + (at - line.before) * kStep, line.before - at,
                                          line.before + line.count - at, task_.binarize, task_.sign_zero);
  }

 private:
  const StageTask& task_;
  Line lines_[kMaxLines];
};

template <class V, class Lines>
inline void stage_3x3_rows(const StageTask& task) {
  using T = typename V::Element;
  T* plane = static_cast<T*>(task.planes);
  for (std::int64_t row = 0; row < task.rows; ++row, plane += task.columns) {
    const Lines lines(task, row);
    for (std::int64_t i = 0; i < task.columns; i += V::kLanes) {
      const auto x0 = lines.load(task.tap_line[0], i + task.tap_shift[0]);
      const auto x1 = lines.load(task.tap_line[1], i + task.tap_shift[1]);
      const auto x2 = lines.load(task.tap_line[2], i + task.tap_shift[2]);
      const auto plus = V::add(x0, x1);
      const auto minus = V::sub(x0, x1);
      V::store_unaligned(plane + i, V::add(plus, x2));
      V::store_unaligned(plane + i + task.plane_stride, V::sub(plus, x2));
      V::store_unaligned(plane + i + 2 * task.plane_stride, V::add(minus, x2));
      V::store_unaligned(plane + i + 3 * task.plane_stride, V::sub(minus, x2));
    }
  }
}

template <class V, class Lines>
inline void stage_8x1x1_rows(const StageTask& task) {
  using T = typename V::Element;
  T* plane = static_cast<T*>(task.planes);
  for (std::int64_t row = 0; row < task.rows; ++row, plane += task.columns) {
    const Lines lines(task, row);
    for (int half = 0; half < 2; ++half) {
      for (std::int64_t i = 0; i < task.columns; i += V::kLanes) {
        const auto x0 = lines.load(4 * half, i), x1 = lines.load(4 * half + 1, i);
        const auto x2 = lines.load(4 * half + 2, i), x3 = lines.load(4 * half + 3, i);
        const auto plus = V::add(x2, x3);
        const auto minus = V::sub(x2, x3);
        T* out = plane + half * kPatternsOfHalf * task.plane_stride + i;
        const auto store_four = [&](auto pair) {  // signs of (x2, x3): ++ +- -+ --
          V::store_unaligned(out, V::add(pair, plus));
          V::store_unaligned(out + task.plane_stride, V::add(pair, minus));
          V::store_unaligned(out + 2 * task.plane_stride, V::sub(pair, minus));
          V::store_unaligned(out + 3 * task.plane_stride, V::sub(pair, plus));
          out += 4 * task.plane_stride;
        };
        store_four(V::add(x0, x1));
        store_four(V::sub(x0, x1));
      }
    }
  }
}

// All lines of a task have the same step.
template <class V>
inline void stage_3x3(const StageTask& task) {
  if constexpr (V::kLoadsWindows) {
    if (task.lines[0].step == 1) return stage_3x3_rows<V, LinesInPlace<V, 1>>(task);
    if (task.lines[0].step == 2) return stage_3x3_rows<V, LinesInPlace<V, 2>>(task);
  }
  stage_3x3_rows<V, CopiedLines<V>>(task);
}

template <class V>
inline void stage_8x1x1(const StageTask& task) {
  if constexpr (V::kLoadsWindows) {
    if (task.lines[0].step == 1) return stage_8x1x1_rows<V, LinesInPlace<V, 1>>(task);
    if (task.lines[0].step == 2) return stage_8x1x1_rows<V, LinesInPlace<V, 2>>(task);
  }
  stage_8x1x1_rows<V, CopiedLines<V>>(task);
}

// One run of rows (RowTerms) for kUnits units, so that its offsets are loaded once for all of them.
template <class V, int kRowElements, int kParts, int kUnits, bool kMinus, class Vector>
[[gnu::always_inline]] inline void respond_run(const RespondRowsTask& task, int begin, int end,
                                               const typename V::Element* sums, const Vector (&last)[kUnits],
                                               typename V::Element* rows) {
  const std::int64_t row_stride = task.row_bytes / std::int64_t{sizeof(typename V::Element)};
  constexpr int kPatterns = kParts == 3 ? kPatternsOfRow : kPatternsOfHalf;
  constexpr int kUnitSums = 2 * (kParts - 1) * kPatterns * kRowElements;
  for (int k = begin; k < end; ++k) {
    const auto* first = sums + task.terms[k].first;
    const auto* second = sums + task.terms[k].second;
    auto* row = rows + k * row_stride;
    for (int u = 0; u < kUnits; ++u) {
      auto sum = V::load(first + u * kUnitSums);
      if constexpr (kParts == 3) sum = V::add(sum, V::load(second + u * kUnitSums));
      V::store(row + u * kRowElements, kMinus ? V::sub(sum, last[u]) : V::add(sum, last[u]));
    }
  }
}

template <class V, int kVectors, int kParts, int kUnits>
inline void respond_units(const RespondRowsTask& task, std::int64_t unit) {
  using T = typename V::Element;
  const std::int64_t plane_stride = task.plane_bytes / std::int64_t{sizeof(T)};
  const std::int64_t unit_stride = task.unit_bytes / std::int64_t{sizeof(T)};
  constexpr int kRowElements = V::kLanes * kVectors;
  constexpr int kPatterns = kParts == 3 ? kPatternsOfRow : kPatternsOfHalf;
  alignas(64) T sums[kUnits * 2 * (kParts - 1) * kPatterns * kRowElements];
  T* out = sums;
  for (int u = 0; u < kUnits; ++u) {
    for (int i = 0; i + 1 < kParts; ++i) {
      const T* plane = static_cast<const T*>(task.part[i]) + (unit + u) * unit_stride;
      for (int q = 0; q < kPatterns; ++q, out += 2 * kRowElements, plane += plane_stride) {
        for (int lane = 0; lane < kRowElements; lane += V::kLanes) {
          const auto sum = V::load_unaligned(plane + lane);
          V::store(out + lane, sum);
          V::store(out + kRowElements + lane, V::negate(sum));
        }
      }
    }
  }
  for (int lane = 0; lane < kRowElements; lane += V::kLanes) {
    T* rows = static_cast<T*>(task.rows) + unit * kRowElements + lane;
    int begin = 0;
    for (int pattern = 0; pattern < kPatterns; ++pattern) {
      const T* plane = static_cast<const T*>(task.part[kParts - 1]) + pattern * plane_stride + lane;
      decltype(V::zero()) last[kUnits];
      for (int u = 0; u < kUnits; ++u) last[u] = V::load_unaligned(plane + (unit + u) * unit_stride);
      const int middle = task.run_end[2 * pattern], end = task.run_end[2 * pattern + 1];
      respond_run<V, kRowElements, kParts, kUnits, false>(task, begin, middle, sums + lane, last, rows);
      respond_run<V, kRowElements, kParts, kUnits, true>(task, middle, end, sums + lane, last, rows);
      begin = end;
    }
  }
}

template <class V, int kVectors, int kParts>
inline void respond_parts(const RespondRowsTask& task) {
  std::int64_t unit = 0;
  for (; unit + 4 <= task.units; unit += 4) respond_units<V, kVectors, kParts, 4>(task, unit);
  for (; unit < task.units; ++unit) respond_units<V, kVectors, kParts, 1>(task, unit);
}

template <class V, int kVectors>
inline void respond_rows(const RespondRowsTask& task) {
  if (task.unit == Unit::k3x3) {
    respond_parts<V, kVectors, 3>(task);
  } else {
    respond_parts<V, kVectors, 2>(task);
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

// F is the float vector of the level; F::load_sums reads sums of either kind as floats.
template <class F, class Sum, int kRowElements>
inline void finish_rows(const FinishTask& task) {
  const Sum* sums = static_cast<const Sum*>(task.sums);
  for (std::int64_t o = 0; o < task.outputs; ++o, sums += kRowElements) {
    const auto scale = F::broadcast(task.scale ? task.scale[o] : 1);
    const auto bias = F::broadcast(task.bias ? task.bias[o] : 0);
    float* y = task.y + o * task.y_channel;
    for (int p = 0; p < task.pixels; p += F::kLanes) {
      const auto value = F::add(F::mul(F::load_sums(sums + p), scale), bias);
      const int n = task.pixels - p < F::kLanes ? task.pixels - p : F::kLanes;
      if (task.y_pixel == 1) {
        F::store_partial(y + p, value, n);
      } else {
        alignas(64) float lanes[F::kLanes];
        F::store(lanes, value);
        for (int i = 0; i < n; ++i) y[(p + i) * task.y_pixel] = lanes[i];
      }
    }
  }
}

}  // namespace
}  // namespace subbit
