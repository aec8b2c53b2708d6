#include "cuda/product/float16_bfloat16.cuh"
#include "cuda/product/route.h"

namespace subbit {

cudaError_t launch_product_float16_bfloat16(const CudaParams& params, const CudaOperands& operands,
                                            cudaStream_t stream) {
  return run_product_float16_bfloat16(params, operands, stream);
}

}  // namespace subbit
