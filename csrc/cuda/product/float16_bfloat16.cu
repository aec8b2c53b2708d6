#include "cuda/product/route.h"
#include "cuda/product/float16_bfloat16.cuh"

namespace subbit {

cudaError_t launch_product_halves(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream) {
  return run_product_halves(params, operands, stream);
}

}  // namespace subbit
