// What the steps of the bits family are given.
#pragma once

#include <cstdint>

namespace subbit {

// Activations are words of 64 channels: which are not zero (`used`), and which are +1 (`plus`). Words of pixels that
// are padding are 0.
struct MatchBitsTask {
  const std::uint64_t* used[4];    // of kBitsPixels pixels: the first tap's words
  std::int64_t plus;               // from there to the words of signs
  const std::int64_t* tap_offset;  // of each tap from the first
  int taps, words;
  const std::uint8_t* codes[4];  // with a code step: the first tap's codes
  int halves;                    // of words, that have channels: the weights of the others are left out then
  // The bits of weights, 1 is +1. [outputs / 8][tap][word][8]: words of 64 channels for 8 outputs. With a code step
  // [outputs / 32][tap][half][4][32]: bytes of 8 channels for 32 outputs, 0, 16, 1, 17 and so on.
  const void* weights;
  std::int64_t outputs;      // a multiple of kOutputsPerMatch
  int pixels;                // 1 to kBitsPixels
  std::uint16_t* different;  // [pixel][outputs]: how many activations differ from the weight in sign
  float* used_count;         // [pixel]: how many are not zero
};

// Four activations of each nibble of a word as a number that names a table, sixteen per word.
struct CodeBitsTask {
  const std::uint64_t* used;
  const std::uint64_t* plus;  // where nothing is used it says nothing
  std::int64_t words;
  std::uint8_t* codes;  // [word][16]
};

constexpr int kBitsPixels = 4;
constexpr int kOutputsPerMatch = 32;

}  // namespace subbit
