// Reading one of a weight's packed indices on the device.
#pragma once

#include <cstdint>

#include "cuda/common/platform.h"

namespace subbit {

struct PackedIndices {
  const std::uint32_t* words;  // as CudaOperands has them
  std::int64_t row_words;      // of an output
  int tau;

  // The output counts all groups', the unit its own.
  SUBBIT_DEVICE std::uint32_t at(std::int64_t output, std::int64_t unit) const {
    const std::uint32_t* row = words + output * row_words;
    const std::int64_t bit = unit * tau, word = bit / 32;
    const int shift = static_cast<int>(bit % 32);
    std::uint32_t index = row[word] >> shift;
    if (shift + tau > 32) index |= row[word + 1] << (32 - shift);
    return index & ((1u << tau) - 1);
  }
};

}  // namespace subbit
