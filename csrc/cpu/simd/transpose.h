// Bits of 64 words exchanged, for the ISA files.
#pragma once

#include <cstdint>

namespace subbit {
namespace {

// Word i bit j goes to word j bit i. Blocks off the diagonal change places, 32 words apart first and neighbours last
// (Warren, Hacker's Delight, 7-3).
inline void transpose(std::uint64_t words[64]) {
  std::uint64_t mask = 0x00000000ffffffff;
  for (int distance = 32; distance > 0; distance /= 2, mask ^= mask << distance) {
    for (int base = 0; base < 64; base += 2 * distance) {
      for (int i = base; i < base + distance; ++i) {
        const std::uint64_t swap = (words[i] >> distance ^ words[i + distance]) & mask;
        words[i + distance] ^= swap;
        words[i] ^= swap << distance;
      }
    }
  }
}

}  // namespace
}  // namespace subbit
