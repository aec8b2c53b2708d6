// The rows family in plain C++: the specification that every other level is tested against, bit for bit.
#include "cpu/epilogue/scalar.h"

#include <algorithm>

#include "cpu/families/kernels.h"

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
void stage(const StageTask& task) {
  T* plane = static_cast<T*>(task.plane);
  std::fill(plane, plane + task.rows * task.columns, T{0});
  for (std::int64_t row = task.inside_begin; row < task.inside_end; ++row) {
    const float* x = task.x + (row - task.inside_begin) * task.row_step;
    T* out = plane + row * task.columns + task.before;
    for (std::int64_t i = 0; i < task.count; ++i) out[i] = element<T>(x[i * task.step], task);
  }
}

template <class T>
T plus_or_minus(T a, bool minus, T b) {
  return static_cast<T>(minus ? a - b : a + b);
}

// What the unit's taps see of one pixel of the tile. Taps outside the image see 0.
template <class T>
void load_taps(const RespondRowsTask& task, std::int64_t unit, int pixel, T* taps) {
  const auto load = [&](const void* p, std::int64_t bytes) {
    return reinterpret_cast<const T*>(static_cast<const char*>(p) + unit * task.unit_bytes + bytes)[pixel];
  };
  const auto is_inside = [&](const void* mask) { return static_cast<const char*>(mask)[pixel * sizeof(T)] != 0; };
  if (task.unit == Unit::k3x3) {
    for (int r = 0; r < 3; ++r) {
      taps[3 * r] = is_inside(task.first_mask) ? load(task.row[r], task.first_tap) : T{0};
      taps[3 * r + 1] = load(task.row[r], 0);
      taps[3 * r + 2] = is_inside(task.last_mask) ? load(task.row[r], task.last_tap) : T{0};
    }
  } else {
    for (int c = 0; c < 8; ++c) taps[c] = load(task.channels, c * task.channel_bytes);
  }
}

// The four signless sums of a row of three taps: (x0 +- x1) +- x2.
template <class T>
T row_sum(const T* x, int pattern) {
  return plus_or_minus(plus_or_minus(x[0], pattern & 2, x[1]), pattern & 1, x[2]);
}

// The eight signless sums of half a unit: (x0 +- x1) +- (x2 +- x3). The sign in the middle is that of x2, so the one
// inside the second pair is minus where the signs of x2 and x3 differ.
template <class T>
T half_sum(const T* x, int pattern) {
  const bool minus1 = pattern & 4, minus2 = pattern & 2, minus3 = pattern & 1;
  return plus_or_minus(plus_or_minus(x[0], minus1, x[1]), minus2, plus_or_minus(x[2], minus2 != minus3, x[3]));
}

template <class T, int kPixels>
void respond(const RespondRowsTask& task) {
  const bool is_3x3 = task.unit == Unit::k3x3;
  const int parts = is_3x3 ? 3 : 2;
  const int patterns = is_3x3 ? kPatternsOfRow : kPatternsOfHalf;
  T* sums = static_cast<T*>(task.scratch);
  for (std::int64_t u = 0; u < task.units; ++u) {
    for (int p = 0; p < kPixels; ++p) {
      T taps[9];
      load_taps(task, u, p, taps);
      for (int i = 0; i < parts * patterns; ++i) {
        const int part = i / patterns, pattern = i % patterns;
        const T sum = is_3x3 ? row_sum(taps + 3 * part, pattern) : half_sum(taps + 4 * part, pattern);
        sums[2 * i * kPixels + p] = sum;
        sums[(2 * i + 1) * kPixels + p] = static_cast<T>(-sum);
      }
      for (std::int64_t k = 0; k < task.codewords; ++k) {
        const RowTerms& terms = task.terms[k];
        T sum = static_cast<T>(sums[terms.part[0] + p] + sums[terms.part[1] + p]);
        if (is_3x3) sum = static_cast<T>(sum + sums[terms.part[2] + p]);
        reinterpret_cast<T*>(static_cast<char*>(task.rows) + k * task.row_bytes)[u * kPixels + p] = sum;
      }
    }
  }
}

// Adds the units of one block in their order, whatever the level: so float sums have the same bits everywhere.
template <class Response, class Sum, int kPixels>
void gather(const GatherRowsTask& task) {
  for (std::int64_t o = 0; o < task.outputs; ++o) {
    Sum* sums = static_cast<Sum*>(task.sums) + o * kPixels;
    const std::uint16_t* offsets = task.offsets + o / kOutputsPerStep * kOutputsPerStep * task.units;
    for (int u = 0; u < task.units; ++u) {
      const auto* row = reinterpret_cast<const Response*>(static_cast<const char*>(task.rows) +
                                                          offsets[u * kOutputsPerStep + o % kOutputsPerStep]);
      for (int p = 0; p < task.pixels; ++p) sums[p] = static_cast<Sum>(sums[p] + row[p]);
    }
  }
}

}  // namespace

void stage_float_rows_scalar(const StageTask& task) { stage<float>(task); }
void stage_binary_rows_scalar(const StageTask& task) { stage<std::int8_t>(task); }

void respond_float_rows_scalar(const RespondRowsTask& task) { respond<float, 16>(task); }
void respond_binary_rows_scalar(const RespondRowsTask& task) { respond<std::int8_t, 32>(task); }

void gather_float_rows_scalar(const GatherRowsTask& task) { gather<float, float, 16>(task); }
void gather_binary_rows_scalar(const GatherRowsTask& task) { gather<std::int8_t, std::int16_t, 32>(task); }

void finish_float_rows_scalar(const FinishTask& task) { finish_tiles<float, 16>(task); }
void finish_binary_rows_scalar(const FinishTask& task) { finish_tiles<std::int16_t, 32>(task); }

void pack_float_rows_scalar(const PackTask& task) { pack(task); }
void pack_binary_rows_scalar(const PackTask& task) { pack(task); }

}  // namespace subbit
