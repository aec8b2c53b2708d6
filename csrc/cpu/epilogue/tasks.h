// What the last steps of every family are given: finish, and pack.
#pragma once

#include <cstdint>

#include "core/problem.h"

namespace subbit {

// Where signs go; consecutive pixels' words are `stride` apart.
struct Words {
  std::uint64_t* plus;     // > 0, or >= 0 with sign_zero
  std::uint64_t* nonzero;  // plus or < 0; or null
  std::int64_t stride;
  const float* shift;  // per channel, added before the sign is taken; or null
  bool sign_zero;
};

constexpr int kFinishPixels = 64;  // of a task, at most

struct FinishTask {
  // rows: of tiles, sums_stride elements apart, [output][pixels of a tile]; else [pixel][sums_stride]
  const void* sums;
  std::int64_t sums_stride;
  std::int64_t outputs;
  int pixels;
  // Families other than rows: the true sum is factor * sum + offset[pixel]. All are integers below 2^24.
  float factor;
  const float* offset;
  Activation activation;
  // Of output channel 0, and of the tile's first pixel; null is left out.
  const float* scale;
  const float* bias;
  const float* slope;
  const float* shift;
  const float* residual;
  std::int64_t residual_channel, residual_pixel;
  float* y;  // or null, where there are words
  std::int64_t y_channel, y_pixel;
  Words words;  // not of the rows family; where y is null or its channels lie next to each other
};

// The signs of floats as words of 64 channels; bits after the last channel are 0.
struct PackTask {
  const float* x;  // channel 0 of the first pixel
  std::int64_t x_channel, x_pixel;
  std::int64_t channels;
  std::int64_t pixels;
  Words words;
};

}  // namespace subbit
