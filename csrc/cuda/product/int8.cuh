// Binary activations on devices without products of bits: products of int8 (sign_bytes.cuh makes x of them).
#pragma once

#include "cuda/product/run.cuh"

namespace subbit {

using BytesTile = ProductTile<4, 8, 2, 2, 1, 2, 3>;

inline Status run_product_int8(const CudaParams& params, const CudaOperands& operands, Stream stream) {
  return run_product<NumbersKind<std::int8_t, 1>, BytesTile, SmallTile>(params, operands, stream);
}

}  // namespace subbit
