#include "cuda/product/route.h"
#include "cuda/product/float32.cuh"

namespace subbit {

cudaError_t launch_product_floats(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream) {
  return run_product_floats(params, operands, stream);
}

}  // namespace subbit
