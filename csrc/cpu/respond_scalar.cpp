// Stage 1 in plain C++: the specification that every other level is tested against, bit for bit.
#include <algorithm>

#include "cpu/kernels.h"

namespace subbit {
namespace {

// torch.sign, or with sign_zero the sign that takes 0 as +1. NaN has sign 0.
float sign_of(float x, bool sign_zero) {
  if (x > 0 || (sign_zero && x == 0)) return 1;
  return x < 0 ? -1 : 0;
}

// What a kernel works on: the input itself, or its sign.
template <class T>
T element(float x, const StageTask& task);
template <>
float element<float>(float x, const StageTask& task) {
  return task.binarize ? sign_of(x, task.sign_zero) : x;
}
template <>
std::int8_t element<std::int8_t>(float x, const StageTask& task) {
  return static_cast<std::int8_t>(sign_of(x, task.sign_zero));
}

template <class T>
void load_lines(const StageTask& task, std::int64_t row) {
  for (int l = 0; l < task.line_count; ++l) {
    const Line line = line_of_row(task, l, row);
    T* out = static_cast<T*>(task.scratch) + l * task.scratch_stride;
    std::fill(out, out + line.length, T{0});
    for (std::int64_t i = 0; i < line.count; ++i) {
      out[line.before + i] = element<T>(line.x[i * line.step], task);
    }
  }
}

template <class T>
T plus_or_minus(T a, bool minus, T b) {
  return static_cast<T>(minus ? a - b : a + b);
}

// The four signless sums of a row of three taps: (x0 +- x1) +- x2.
template <class T>
void stage_3x3(const StageTask& task) {
  const T* tap[3];
  for (int t = 0; t < 3; ++t) {
    tap[t] = static_cast<const T*>(task.scratch) + task.tap_line[t] * task.scratch_stride + task.tap_shift[t];
  }
  for (std::int64_t row = 0; row < task.rows; ++row) {
    load_lines<T>(task, row);
    for (int pattern = 0; pattern < kPatternsOfRow; ++pattern) {
      T* out = static_cast<T*>(task.planes) + pattern * task.plane_stride + row * task.columns;
      for (std::int64_t i = 0; i < task.columns; ++i) {
        const T pair = plus_or_minus(tap[0][i], pattern & 2, tap[1][i]);
        out[i] = plus_or_minus(pair, pattern & 1, tap[2][i]);
      }
    }
  }
}

// The eight signless sums of each half of a unit: (x0 +- x1) +- (x2 +- x3). The sign in the middle is that
// of x2, so the one inside the second pair is minus where the signs of x2 and x3 differ.
template <class T>
void stage_8x1x1(const StageTask& task) {
  for (std::int64_t row = 0; row < task.rows; ++row) {
    load_lines<T>(task, row);
    for (int half = 0; half < 2; ++half) {
      const T* x[4];
      for (int c = 0; c < 4; ++c) x[c] = static_cast<const T*>(task.scratch) + (half * 4 + c) * task.scratch_stride;
      for (int pattern = 0; pattern < kPatternsOfHalf; ++pattern) {
        const bool minus1 = pattern & 4, minus2 = pattern & 2, minus3 = pattern & 1;
        T* out =
            static_cast<T*>(task.planes) + (half * kPatternsOfHalf + pattern) * task.plane_stride + row * task.columns;
        for (std::int64_t i = 0; i < task.columns; ++i) {
          const T pair0 = plus_or_minus(x[0][i], minus1, x[1][i]);
          const T pair1 = plus_or_minus(x[2][i], minus2 != minus3, x[3][i]);
          out[i] = plus_or_minus(pair0, minus2, pair1);
        }
      }
    }
  }
}

template <class T, int kPixels>
void respond(const RespondRowsTask& task) {
  const int parts = task.unit == Unit::k3x3 ? 3 : 2;
  const int patterns = task.unit == Unit::k3x3 ? kPatternsOfRow : kPatternsOfHalf;
  const std::int64_t size = sizeof(T);
  for (std::int64_t u = 0; u < task.units; ++u) {
    T sums[2 * kPatternsOfHalf * kPixels];
    for (int i = 0; i < (parts - 1) * patterns; ++i) {
      const T* plane = static_cast<const T*>(task.part[i / patterns]) +
                       (u * task.unit_bytes + i % patterns * task.plane_bytes) / size;
      for (int p = 0; p < kPixels; ++p) {
        sums[2 * i * kPixels + p] = plane[p];
        sums[(2 * i + 1) * kPixels + p] = static_cast<T>(-plane[p]);
      }
    }
    int k = 0;
    for (int run = 0; run < 2 * patterns; ++run) {
      const T* last =
          static_cast<const T*>(task.part[parts - 1]) + (u * task.unit_bytes + run / 2 * task.plane_bytes) / size;
      for (; k < task.run_end[run]; ++k) {
        T* row = static_cast<T*>(task.rows) + k * task.row_bytes / size + u * kPixels;
        for (int p = 0; p < kPixels; ++p) {
          T sum = sums[task.terms[k].first + p];
          if (parts == 3) sum = static_cast<T>(sum + sums[task.terms[k].second + p]);
          row[p] = plus_or_minus(sum, run % 2, last[p]);
        }
      }
    }
  }
}

}  // namespace

void stage_3x3_float_rows_scalar(const StageTask& task) { stage_3x3<float>(task); }
void stage_3x3_binary_rows_scalar(const StageTask& task) { stage_3x3<std::int8_t>(task); }
void stage_8x1x1_float_rows_scalar(const StageTask& task) { stage_8x1x1<float>(task); }
void stage_8x1x1_binary_rows_scalar(const StageTask& task) { stage_8x1x1<std::int8_t>(task); }

void respond_float_rows_scalar(const RespondRowsTask& task) { respond<float, 16>(task); }
void respond_binary_rows_scalar(const RespondRowsTask& task) { respond<std::int8_t, 32>(task); }

}  // namespace subbit
