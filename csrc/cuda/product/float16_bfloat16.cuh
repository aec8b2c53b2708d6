// float16 and bfloat16: one product, summed in float32.
#pragma once

#include "cuda/product/run.cuh"

namespace subbit {

using Float16Tile = ProductTile<4, 8, 2, 2, 1, 2, 3>;

inline Status run_product_float16_bfloat16(const CudaParams& params, const CudaOperands& operands, Stream stream) {
  if (params.element == Element::kFloat16) {
    return run_product<NumbersKind<__half, 1>, Float16Tile, SmallTile>(params, operands, stream);
  }
  return run_product<NumbersKind<__nv_bfloat16, 1>, Float16Tile, SmallTile>(params, operands, stream);
}

}  // namespace subbit
