// Words of 64 channels, for the ISA files.
#pragma once

#include <cstdint>

namespace subbit {
namespace {

// Consecutive pixels' words are `stride` apart.
inline void store_words(const std::uint64_t* pixels, int n, std::uint64_t* words, std::int64_t stride) {
  for (int p = 0; p < n; ++p) words[p * stride] = pixels[p];
}

}  // namespace
}  // namespace subbit
