// Which taps of a patch lie inside the image, per output pixel. It depends on nothing but the sizes of a call.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/problem.h"

namespace subbit {

struct PatchMap {
  // Which taps lie inside the image as a bit set is a pixel's *place*. These places have rows of responses of their
  // own: a 3x3 patch that misses nothing, or the first or last row or column or both; a 1x1 patch or none.
  static std::vector<std::uint16_t> places(Unit unit);

  PatchMap(const ConvProblem& params, int code_unit);

  std::int64_t words;                 // of 64 pixels, and one more
  std::vector<std::uint64_t> inside;  // [tap][words]: bit p is 1 where the tap of pixel p is inside
  std::vector<std::uint16_t> first;   // [pixel]: where the rows for the pixel's place begin, in codes
  std::vector<std::uint8_t> taps;     // [pixel]: how many are inside
  bool all_have_rows = true;          // no pixel has another place
};

// What a PatchMap depends on, for a cache.
using PatchMapKey = std::array<std::int64_t, 10>;
PatchMapKey patch_map_key(const ConvProblem& params);

}  // namespace subbit
