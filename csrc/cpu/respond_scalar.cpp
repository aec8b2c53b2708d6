// Stage 1 in plain C++: the specification that every other level is tested against, bit for bit.
#include <algorithm>
#include <cmath>

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
void load_lines(const StageTask& task) {
  for (int l = 0; l < task.line_count; ++l) {
    const Line& line = task.lines[l];
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
  load_lines<T>(task);
  const T* tap[3];
  for (int t = 0; t < 3; ++t) {
    tap[t] = static_cast<const T*>(task.scratch) + task.tap_line[t] * task.scratch_stride + task.tap_shift[t];
  }
  T* planes = static_cast<T*>(task.planes);
  for (int pattern = 0; pattern < kPatternsOfRow; ++pattern) {
    for (std::int64_t i = 0; i < task.columns; ++i) {
      const T pair = plus_or_minus(tap[0][i], pattern & 2, tap[1][i]);
      planes[pattern * task.plane_stride + i] = plus_or_minus(pair, pattern & 1, tap[2][i]);
    }
  }
}

// The eight signless sums of each half of a unit: (x0 +- x1) +- (x2 +- x3). The sign in the middle is that
// of x2, so the one inside the second pair is minus where the signs of x2 and x3 differ.
template <class T>
void stage_8x1x1(const StageTask& task) {
  load_lines<T>(task);
  T* planes = static_cast<T*>(task.planes);
  for (int half = 0; half < 2; ++half) {
    const T* x = static_cast<const T*>(task.scratch) + half * 4 * task.scratch_stride;
    for (int pattern = 0; pattern < kPatternsOfHalf; ++pattern) {
      const bool minus1 = pattern & 4, minus2 = pattern & 2, minus3 = pattern & 1;
      T* out = planes + (half * kPatternsOfHalf + pattern) * task.plane_stride;
      for (std::int64_t i = 0; i < task.columns; ++i) {
        const T pair0 = plus_or_minus(x[i], minus1, x[task.scratch_stride + i]);
        const T pair1 = plus_or_minus(x[2 * task.scratch_stride + i], minus2 != minus3, x[3 * task.scratch_stride + i]);
        out[i] = plus_or_minus(pair0, minus2, pair1);
      }
    }
  }
}

template <class T, int kPixels>
void respond(const RespondRowsTask& task, int parts) {
  const RowProgram& program = *task.program;
  T* row = static_cast<T*>(task.rows);
  int k = 0;
  for (int run = 0; run < 1 << parts; ++run) {
    for (; k < program.run_end[run]; ++k, row += kPixels) {
      for (int p = 0; p < kPixels; ++p) {
        T sum{};
        for (int part = 0; part < parts; ++part) {
          const T term = static_cast<const T*>(task.part[part])[program.terms[k].offset[part] + p];
          const bool minus = run >> (parts - 1 - part) & 1;
          if (part == 0) {
            sum = static_cast<T>(minus ? -term : term);
          } else {
            sum = plus_or_minus(sum, minus, term);
          }
        }
        row[p] = sum;
      }
    }
  }
}

}  // namespace

void stage_3x3_float_rows_scalar(const StageTask& task) { stage_3x3<float>(task); }
void stage_3x3_binary_rows_scalar(const StageTask& task) { stage_3x3<std::int8_t>(task); }
void stage_8x1x1_float_rows_scalar(const StageTask& task) { stage_8x1x1<float>(task); }
void stage_8x1x1_binary_rows_scalar(const StageTask& task) { stage_8x1x1<std::int8_t>(task); }

void respond_float_rows_scalar(const RespondRowsTask& task, int parts) { respond<float, 16>(task, parts); }
void respond_binary_rows_scalar(const RespondRowsTask& task, int parts) { respond<std::int8_t, 32>(task, parts); }

}  // namespace subbit
