// float32: three products of bfloat16 parts (arrange.cuh: the split is exact; kernel.cuh: the error of the sums).
#pragma once

#include "cuda/product/run.cuh"

namespace subbit {

// Half the pixels of the tile of float16: the sums of a stage take registers of their own.
using FloatsTile = ProductTile<4, 4, 2, 2, 1, 2, 3>;

inline Status run_product_floats(const CudaParams& params, const CudaOperands& operands, Stream stream) {
  return run_product<NumbersKind<__nv_bfloat16, 3>, FloatsTile, SmallTile>(params, operands, stream);
}

}  // namespace subbit
