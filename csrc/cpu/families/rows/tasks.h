// What the steps of the rows family are given.
#pragma once

#include <cstdint>

#include "core/unit.h"

namespace subbit {

// A part of a 3x3 unit is a row of three taps; of an 8x1x1 unit, a half of four channels. Up to its sign a row has 2^2
// sums and a half 2^3: its *patterns*, in which the first tap counts positive. In the number of a pattern the sign of
// the second tap is the most significant bit, and 1 is minus.
constexpr int kPatternsOfRow = 4;
constexpr int kPatternsOfHalf = 8;

// A codeword's response is
//
//     (+-first row +- second row) +- last row          8x1x1 units: +-first half +- last half
//
// Usually code made for the codebook does this (respond_code.h). The kernels' own step, which the scalar level and
// systems without such code run, first writes the sums of all parts with both signs side by side: plus or
// minus pattern q of part i is at element (2 * (i * patterns + q) + minus) * pixels.
struct RowTerms {
  std::uint16_t part[3];  // elements from the start of those sums
};

struct RespondRowsTask {
  const RowTerms* terms;  // of each row
  std::int64_t codewords;
  Unit unit;
  // 3x3: where the middle tap of each kernel row reads the tile's first pixel for unit 0, bytes from there to the
  // first and the last tap, and what is left of those two at the edges of the image (per pixel all ones or zero).
  const void* row[3];
  std::int64_t first_tap, last_tap;
  const void* first_mask;
  const void* last_mask;
  // 8x1x1: unit 0's first channel at the tile's first pixel, and bytes from channel to channel.
  const void* channels;
  std::int64_t channel_bytes;
  std::int64_t unit_bytes;  // from the planes of one unit to the next one's
  std::int64_t units;       // at least 1
  std::int64_t row_bytes;   // from row to row of the result
  void* rows;               // [row][unit][pixels of a tile]: stores follow each other
  void* scratch;            // kRespondScratch bytes
};

constexpr int kRespondScratch = 2 * 2 * kPatternsOfHalf * 64;  // the signed sums of a unit; rows are at most 64 bytes

struct GatherRowsTask {
  const void* rows;
  const std::uint16_t* offsets;  // [outputs / kOutputsPerStep][units][kOutputsPerStep], bytes from `rows`
  int units;
  std::int64_t outputs;  // a multiple of kOutputsPerStep
  int pixels;            // valid ones of the tile, at least 1
  void* sums;            // [outputs][pixels of a row]: added to
};

constexpr int kOutputsPerStep = 8;

}  // namespace subbit
