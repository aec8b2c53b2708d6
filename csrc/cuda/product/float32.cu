#include "cuda/product/float32.cuh"
#include "cuda/product/route.h"

namespace subbit {

cudaError_t launch_product_float32(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream) {
  return run_product_float32(params, operands, stream);
}

}  // namespace subbit
