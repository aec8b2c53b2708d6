// The nearest codeword of every unit of a latent weight, which training asks for at every step.
#pragma once

#include <cstdint>

#include "cpu/isa/level.h"

namespace subbit {

// units are (count, taps) reals, codebook (codewords, taps) of +-1; taps is 8 or 9. Codewords are of one length, so the
// nearest is that of the greatest product, which is summed in the order of the taps: the same bits at every level. Of
// equal products the first codeword is taken; where none is greater than -Inf (NaN), 0.
void assign(const float* units, std::int64_t count, int taps, const float* codebook, int codewords, int threads,
            Level level, std::int64_t* indices);

}  // namespace subbit
