// For sm_90a alone (CMakeLists.txt).
#include "cuda/product/route.h"
#include "cuda/product/wgmma.cuh"

namespace subbit {

cudaError_t launch_product_wgmma(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream) {
  return run_product_wgmma(params, operands, stream);
}

}  // namespace subbit
