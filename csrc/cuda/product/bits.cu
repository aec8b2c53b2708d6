#include "cuda/product/bits.cuh"
#include "cuda/product/route.h"

namespace subbit {

cudaError_t launch_product_bits(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream) {
  return run_product_bits(params, operands, stream);
}

}  // namespace subbit
