// Parts of a codeword as the rows family stages them.
#pragma once

#include "core/packed.h"
#include "core/unit.h"

namespace subbit {

// A part (a row of three taps, or a half of four) as a sign and a signless pattern: tasks.h says how they are
// numbered.
struct SignedPattern {
  bool minus;
  int pattern;
};

inline SignedPattern part_of(Codeword codeword, Unit unit, int part) {
  const int taps = unit == Unit::k3x3 ? 3 : 4;
  const auto is_minus = [&](int tap) { return !(codeword >> (part * taps + tap) & 1); };
  SignedPattern result{is_minus(0), 0};
  for (int tap = 1; tap < taps; ++tap) result.pattern = 2 * result.pattern + (is_minus(tap) != result.minus);
  return result;
}

}  // namespace subbit
