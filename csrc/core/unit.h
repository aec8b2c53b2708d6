// A unit is the piece of a weight that one index names (paper, Table 5): a 3x3 kernel of one input
// channel, or a vector over 8 input channels of a 1x1 convolution.
#pragma once

#include <cstdint>

namespace subbit {

enum class Unit { k3x3 = 0, k8x1x1 = 1 };

constexpr int kMaxTau = 8;
constexpr int kMaxCodewords = 1 << kMaxTau;

constexpr int unit_channels(Unit unit) { return unit == Unit::k3x3 ? 1 : 8; }
constexpr int unit_taps(Unit unit) { return unit == Unit::k3x3 ? 9 : 8; }
constexpr int kernel_size(Unit unit) { return unit == Unit::k3x3 ? 3 : 1; }
constexpr int kernel_taps(Unit unit) { return kernel_size(unit) * kernel_size(unit); }

// A codeword as a bit set: bit t is 1 where tap t (row by row; or channel t) is +1.
using Codeword = std::uint16_t;

}  // namespace subbit
