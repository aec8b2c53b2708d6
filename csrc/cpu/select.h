// Which kernel runs a convolution: a pure function of its sizes and the level, so that a test can pin the
// answer for any machine on any machine.
#pragma once

#include <cstdint>

#include "core/level.h"
#include "cpu/kernel.h"

namespace subbit {

struct Problem {
  Activations activations;
  Unit unit;
  int codewords;
  std::int64_t units;    // of one output channel
  std::int64_t outputs;  // of one group
  std::int64_t spread;   // the largest of strides and dilations
};

struct Plan {
  const Kernel* kernel;
  bool binarize;        // a float kernel that takes the sign of its input
  int units_per_block;  // whose responses are in the cache at one time
};

// Bytes of +-9 may be added 14 times (126). With a 16-bit sum behind them, kBinaryTaps taps are the most.
constexpr int kBinaryUnitsPerBlock = 14;
static_assert(kBinaryUnitsPerBlock * unit_taps(Unit::k3x3) <= 127, "byte sums must not overflow");
constexpr std::int64_t kBinaryTaps = 32767;

// The bytes of a row of responses in the patches layout: a power of two, at least 8.
int patch_slot(int codewords);

Plan select(const Problem& problem, Level level);

}  // namespace subbit
