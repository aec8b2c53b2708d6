#include "cpu/assign/assign.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/checked.h"
#include "cpu/assign/steps.h"
#include "cpu/driver/parallel.h"

namespace subbit {
namespace {

using Step = void (*)(const AssignTask&);

Step step_of(int taps, Level level) {
#if SUBBIT_X86
  if (runs_on(Level::kAvx512, level)) return taps == 8 ? assign8_avx512 : assign9_avx512;
  if (runs_on(Level::kAvx2, level)) return taps == 8 ? assign8_avx2 : assign9_avx2;
#endif
  (void)level;
  return taps == 8 ? assign8_scalar : assign9_scalar;
}

Summands summands_of(const float* codeword, int taps) {
  Summands at{};
  for (int tap = 0; tap < kPrefixTaps; ++tap) at.first |= (codeword[tap] > 0) << tap;
  for (int tap = kPrefixTaps; tap < taps; ++tap) {
    at.rest[tap - kPrefixTaps] = static_cast<std::uint8_t>(2 * (tap - kPrefixTaps) + (codeword[tap] > 0));
  }
  return at;
}

}  // namespace

void assign(const float* units, std::int64_t count, int taps, const float* codebook, int codewords, int threads,
            Level level, std::int64_t* indices) {
  if (taps != 8 && taps != 9) throw std::invalid_argument("taps must be 8 or 9, got " + std::to_string(taps));
  if (codewords < 1 || codewords > 1 << taps) {
    throw std::invalid_argument("codewords must be 1 to 2^taps, got " + std::to_string(codewords));
  }
  if (threads < 1) throw std::invalid_argument("threads must be at least 1, got " + std::to_string(threads));
  checked_product({count, taps, 4}, "units");
  std::vector<Summands> summands;
  for (int codeword = 0; codeword < codewords; ++codeword) {
    summands.push_back(summands_of(codebook + codeword * taps, taps));
  }
  const Step step = step_of(taps, level);
  constexpr std::int64_t kTaskUnits = 4096;
  const std::int64_t tasks = ceil_div(count, kTaskUnits);
  parallel(static_cast<int>(std::min<std::int64_t>(threads, tasks)), tasks, [&](int, std::int64_t task) {
    const std::int64_t first = task * kTaskUnits;
    step({units + first * taps, std::min(kTaskUnits, count - first), summands.data(), codewords, indices + first});
  });
}

}  // namespace subbit
