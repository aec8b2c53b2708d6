// The patches family in plain C++: the specification that every other level is tested against.
#include "cpu/epilogue/scalar.h"

#include "cpu/families/kernels.h"

namespace subbit {
namespace {

constexpr int kWordBits = 64;

void set_bit(std::uint64_t* words, std::int64_t at, bool value) {
  words[at / kWordBits] |= std::uint64_t{value} << (at % kWordBits);
}

// The 64 bits from bit `at` on, which may be negative.
std::uint64_t get_bits(const std::uint64_t* words, std::int64_t at) {
  const std::uint64_t* word = words + (at >> 6);
  const int shift = static_cast<int>(at & 63);
  return shift == 0 ? word[0] : word[0] >> shift | word[1] << (kWordBits - shift);
}

// Calls put(where in the input, which bit of the plane) for every element of a plane that is not padding.
template <class Put>
void for_each_inside(const StageTask& input, const Put& put) {
  for (std::int64_t row = input.inside_begin; row < input.inside_end; ++row) {
    for (std::int64_t i = 0; i < input.count; ++i) {
      put((row - input.inside_begin) * input.row_step + i * input.step, row * input.columns + input.before + i);
    }
  }
}

void clear(const StageTask& input, std::uint64_t* plane) {
  for (std::int64_t at = 0; at < input.rows * input.columns; at += kWordBits) plane[at / kWordBits] = 0;
}

}  // namespace

bool stage_binary_patches_scalar(const StagePatchesTask& task) {
  bool zeros = false;
  clear(task.input, task.plus);
  clear(task.input, task.positive);
  for_each_inside(task.input, [&](std::int64_t from, std::int64_t to) {
    const float x = task.input.x[from];
    const bool is_plus = x > 0 || (task.input.sign_zero && x == 0), is_minus = x < 0;  // NaN is neither
    set_bit(task.plus, to, is_plus);
    set_bit(task.positive, to, !is_minus);
    zeros |= !is_plus && !is_minus;
  });
  return zeros;
}

bool stage_packed_binary_patches_scalar(const StagePackedTask& task) {
  bool zeros = false;
  for (int c = 0; c < task.channels; ++c) {
    std::uint64_t* plus = task.plus + c * task.channel_stride;
    std::uint64_t* positive = task.positive + c * task.channel_stride;
    clear(task.input, plus);
    clear(task.input, positive);
    for_each_inside(task.input, [&](std::int64_t from, std::int64_t to) {
      const bool is_plus = task.words[from] >> c & 1;
      const bool is_zero = task.nonzero && !is_plus && !(task.nonzero[from] >> c & 1);
      set_bit(plus, to, is_plus);
      set_bit(positive, to, is_plus || is_zero);
      zeros |= is_zero;
    });
  }
  return zeros;
}

void code_binary_patches_scalar(const CodePatchesTask& task) {
  for (std::int64_t u = 0; u < task.units; ++u) {
    std::uint64_t seen[9];  // by each tap, a bit per pixel
    for (int t = 0; t < task.taps; ++t) {
      const std::uint64_t bits = get_bits(task.plane + u * task.unit_stride, task.tap_bit[t]);
      seen[t] = (bits & task.inside[t]) | (task.outside & ~task.inside[t]);
    }
    for (int p = 0; p < kChunk; ++p) {
      int patch = 0;
      for (int t = 0; t < task.taps; ++t) patch |= static_cast<int>(seen[t] >> p & 1) << t;
      task.codes[p / kCodePixels * task.block_stride + u * kCodePixels + p % kCodePixels] =
          static_cast<std::uint16_t>(task.first[p] + (patch << task.code_shift));
    }
  }
}

void look_up_binary_patches_scalar(const LookUpTask& task) {
  constexpr int kLanes = 64;
  for (int p = 0; p < task.pixels; ++p) {
    for (std::int64_t first = 0; first < task.outputs; first += kLanes) {
      const std::uint8_t* positions = task.positions + first * task.units;
      std::uint16_t lanes[kLanes] = {};
      for (std::int64_t u = 0; u < task.units; ++u, positions += kLanes) {
        const std::uint8_t* row = task.responses + 8 * std::int64_t{task.codes[u * kCodePixels + p]};
        for (int lane = 0; lane < kLanes; ++lane) {
          lanes[lane] = static_cast<std::uint16_t>(lanes[lane] + row[positions[lane]]);
        }
      }
      std::uint16_t* sums = task.sums + p * task.outputs + first;
      for (int lane = 0; lane < kLanes; ++lane) {
        std::uint16_t& sum = sums[output_of_lane(lane)];
        sum = static_cast<std::uint16_t>(lanes[lane] + (task.add ? sum : 0));
      }
    }
  }
}

void finish_binary_patches_scalar(const FinishTask& task) { finish_by_pixel(task); }
void pack_binary_patches_scalar(const PackTask& task) { pack(task); }

}  // namespace subbit
