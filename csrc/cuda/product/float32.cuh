// float32: three products of bfloat16 parts (arrange.cuh: the split is exact; kernel.cuh: the error of the sums).
#pragma once

#include "cuda/product/run.cuh"

namespace subbit {

// Half the pixels of the float16 tile: the sums of a stage take registers of their own.
using Float32Tile = ProductTile<4, 4, 2, 2, 1, 2, 3>;

inline Status run_product_float32(const CudaParams& params, const CudaOperands& operands, Stream stream) {
  return run_product<NumbersKind<__nv_bfloat16, 3>, Float32Tile, SmallTile>(params, operands, stream);
}

}  // namespace subbit
