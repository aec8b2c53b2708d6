// What the steps of the patches family are given.
#pragma once

#include <cstdint>

#include "cpu/families/stage_task.h"

namespace subbit {

// Planes hold one bit per element, two planes per channel: in `plus` a 1 is +1, in `positive` a 1 is +1 or 0. They
// differ only where an activation is 0; then everything is done for both and added up, which counts a 0 as half a
// match.
struct StagePatchesTask {
  StageTask input;  // whose plane is not used
  std::uint64_t* plus;
  std::uint64_t* positive;
};

// The same for up to 64 channels of packed activations at once.
struct StagePackedTask {
  StageTask input;  // whose steps count words; x and plane are not used
  const std::uint64_t* words;
  const std::uint64_t* nonzero;  // or null
  int channels;                  // 1 to 64
  std::uint64_t* plus;           // of the first channel
  std::uint64_t* positive;
  std::int64_t channel_stride;  // words from channel to channel
};

// The codes of the patches that units see at kChunk pixels (there may be fewer: the rest is written too): for each,
// where the rows for its place in the image begin, plus the number whose bit t is tap t, all times slot / 8.
struct CodePatchesTask {
  const std::uint64_t* plane;  // of bits: unit 0's first
  std::int64_t unit_stride;    // words from unit to unit
  std::int64_t units;
  const std::int64_t* tap_bit;  // [taps] the bit of a unit's planes that the first pixel's tap is
  const std::uint64_t* inside;  // [taps] pixels whose tap is inside the image
  std::uint64_t outside;        // all ones or zero: the bits of the other taps
  int taps;
  const std::uint16_t* first;  // [kChunk]
  int code_shift;              // log2(slot / 8)
  std::uint16_t* codes;        // [p / kCodePixels * block_stride + unit * kCodePixels + p % kCodePixels]
  std::int64_t block_stride;
};

constexpr int kChunk = 64;
constexpr int kCodePixels = 8;

// Lanes of 64 outputs: even bytes are widened to outputs 0 to 31, odd ones to 32 to 63, so that no byte changes places.
constexpr int output_of_lane(int lane) { return lane / 2 + lane % 2 * 32; }

// A row of `slot` bytes says how many taps of a patch agree with each codeword: nine at most.
struct LookUpTask {
  const std::uint16_t* codes;     // [unit][kCodePixels]
  const std::uint8_t* responses;  // the row of a code is at 8 * code
  int slot;                       // bytes of a row: 8, 16, 32 or 64
  std::int64_t units;
  const std::uint8_t* positions;  // [outputs / 64][unit][lane]
  std::int64_t outputs;           // a multiple of 64
  int pixels;                     // 1 to kCodePixels
  bool add;                       // to the sums, or write them
  std::uint16_t* sums;            // [pixel][outputs]
};

}  // namespace subbit
