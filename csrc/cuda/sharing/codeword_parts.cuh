// A codeword as the sharing kernel takes it apart: three rows of taps, or two halves of an 8x1x1 unit. A part's
// response is its sign times one of few signless sums, which all codewords share.
#pragma once

#include "cuda/common/params.h"
#include "cuda/common/platform.h"
#include "cuda/sharing/tile.h"

namespace subbit {

template <Unit kUnit>
struct CodewordParts {
  static constexpr int kParts = sharing_parts(kUnit);
  static constexpr int kPartTaps = sharing_part_taps(kUnit);
  static constexpr int kPartSums = sharing_part_sums(kUnit);
  static constexpr int kPartBits = kPartTaps;  // of a key

  // A codeword as its parts, the first in the highest bits: a part is the sign of its first tap (1 for +1), then a bit
  // for each other tap, 1 where its sign is another.
  static SUBBIT_DEVICE unsigned key_of(unsigned codeword) {
    unsigned key = 0;
    SUBBIT_UNROLL
    for (int part = 0; part < kParts; ++part) {
      const unsigned first = codeword >> (part * kPartTaps) & 1;
      key = key << 1 | first;
      SUBBIT_UNROLL
      for (int tap = 1; tap < kPartTaps; ++tap) {
        key = key << 1 | ((codeword >> (part * kPartTaps + tap) & 1) ^ first);
      }
    }
    return key;
  }

  // Sum number `pattern` of word v of the taps, the signs in its bits:
  // (x0 +- x1) +- x2, or (x0 +- x1) +- (x2 +- x3), where the sign in the middle is that of x2.
  template <class Floats>
  static SUBBIT_DEVICE float signless_sum(const Floats* taps, int v, int pattern) {
    const auto minus = [&](int tap) { return (pattern >> (kPartTaps - 1 - tap) & 1) != 0; };
    const float first = add(taps[0].at[v], minus(1), taps[1].at[v]);
    if constexpr (kUnit == Unit::k3x3) {
      return add(first, minus(2), taps[2].at[v]);
    } else {
      return add(first, minus(2), add(taps[2].at[v], minus(2) != minus(3), taps[3].at[v]));
    }
  }

 private:
  static SUBBIT_DEVICE float add(float a, bool minus, float b) { return __fadd_rn(a, minus ? -b : b); }
};

}  // namespace subbit
