// What the planner is asked, and what it answers.
#pragma once

#include <cstdint>

#include "core/problem.h"
#include "core/unit.h"

namespace subbit {

struct Kernel;

struct Problem {
  Activations activations;
  Unit unit;
  int codewords;
  std::int64_t units;    // per output channel
  std::int64_t outputs;  // per group
  std::int64_t groups;
  std::int64_t spread;        // the largest of strides and dilations
  std::int64_t pixels;        // per output image
  std::int64_t input_pixels;  // per input image
  bool packed_input;

  constexpr std::int64_t channels() const { return units * unit_channels(unit); }  // per group
  constexpr std::int64_t words() const { return (channels() + kWordChannels - 1) / kWordChannels; }

  // What families whose planes hold single channels stage, per group.
  constexpr bool is_strided() const { return pixels < input_pixels; }
  constexpr double planes() const {
    return static_cast<double>(units) * (unit == Unit::k8x1x1 ? 8 : is_strided() ? 4 : 1);
  }
  // Values, each counted `strided` times where columns are strided.
  constexpr double staged_values(double strided) const {
    return static_cast<double>(channels() * (unit == Unit::k8x1x1 ? pixels : input_pixels)) *
           (is_strided() ? strided : 1);
  }
};

struct Plan {
  const Kernel* kernel = nullptr;  // null: dense, the decoded weight through torch
  bool binarize = false;           // a float kernel that takes the sign of its input
  int units_per_block = 0;         // whose responses are in the cache at one time
};

}  // namespace subbit
