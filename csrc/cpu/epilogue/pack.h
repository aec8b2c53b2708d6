// Signs of an image batch as words of 64 channels.
#pragma once

#include "core/problem.h"
#include "cpu/isa/level.h"

namespace subbit {

struct PackParams {
  std::int64_t batch, channels, height, width;
  std::int64_t x_n, x_c, x_h, x_w;  // strides in elements
  bool sign_zero;
  int threads;
};

// plus and nonzero (which may be null) are [n][row][column][word]; shift is (channels,) or null.
void pack(const PackParams& params, const float* x, const float* shift, std::uint64_t* plus, std::uint64_t* nonzero,
          Level level);

}  // namespace subbit
