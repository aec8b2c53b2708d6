#include "cuda/product/product.h"
#include "cuda/product/product_float.cuh"

namespace subbit {

cudaError_t launch_product_floats(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream) {
  return run_product_floats(params, operands, stream);
}

}  // namespace subbit
