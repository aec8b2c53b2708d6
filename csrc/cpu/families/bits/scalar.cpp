// The bits family in plain C++: the specification that every other level is tested against.
#include "cpu/epilogue/scalar.h"

#include "cpu/families/kernels.h"

namespace subbit {
namespace {

int count_bits(std::uint64_t word) { return __builtin_popcountll(word); }

}  // namespace

void match_binary_bits_scalar(const MatchBitsTask& task) {
  constexpr int kOutputs = 8;  // side by side in the weight
  const auto* weights = static_cast<const std::uint64_t*>(task.weights);
  for (int p = 0; p < task.pixels; ++p) {
    int used = 0;
    for (int t = 0; t < task.taps; ++t) {
      for (int w = 0; w < task.words; ++w) used += count_bits(task.used[p][task.tap_offset[t] + w]);
    }
    task.used_count[p] = static_cast<float>(used);
    for (std::int64_t o = 0; o < task.outputs; o += kOutputs) {
      const std::uint64_t* weight = weights + o * task.taps * task.words;
      int different[kOutputs] = {};
      for (int t = 0; t < task.taps; ++t) {
        for (int w = 0; w < task.words; ++w, weight += kOutputs) {
          const std::uint64_t* x = task.used[p] + task.tap_offset[t] + w;
          for (int i = 0; i < kOutputs; ++i) different[i] += count_bits((weight[i] ^ x[task.plus]) & x[0]);
        }
      }
      std::uint16_t* out = task.different + p * task.outputs + o;
      for (int i = 0; i < kOutputs; ++i) out[i] = static_cast<std::uint16_t>(different[i]);
    }
  }
}

void finish_binary_bits_scalar(const FinishTask& task) { finish_by_pixel(task); }
void pack_binary_bits_scalar(const PackTask& task) { pack(task); }

}  // namespace subbit
