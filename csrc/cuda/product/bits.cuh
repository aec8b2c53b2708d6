// Binary activations: products of bits.
#pragma once

#include "cuda/product/run.cuh"

namespace subbit {

// Two planes take twice the registers and shared memory, so half the pixels.
using BitsTile = ProductTile<4, 8, 2, 2, 1, 1, 3>;
using PlanesTile = ProductTile<4, 4, 2, 2, 1, 1, 3>;

inline Status run_product_bits(const CudaParams& params, const CudaOperands& operands, Stream stream) {
  if (input_planes(params, operands) == 1) {
    return run_product<BitsKind<1>, BitsTile, SmallTile>(params, operands, stream);
  }
  return run_product<BitsKind<2>, PlanesTile, SmallTile>(params, operands, stream);
}

}  // namespace subbit
