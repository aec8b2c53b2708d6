// A sub-bit convolution on the CPU.
#pragma once

#include "core/conv_params.h"
#include "core/level.h"
#include "cpu/weight.h"

namespace subbit {

// y = scale * conv(x, weight) + bias. `params` must agree with the weight and with itself (the caller has
// checked); y must not overlap x. Uses kernels of at most `level`.
void conv(const Weight& weight, const ConvParams& params, Level level);

}  // namespace subbit
