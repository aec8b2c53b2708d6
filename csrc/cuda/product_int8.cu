#include "cuda/product.h"
#include "cuda/product_int8.cuh"

namespace subbit {

cudaError_t launch_product_int8(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream) {
  return run_product_int8(params, operands, stream);
}

}  // namespace subbit
