// float32: three bfloat16 parts.
#include "cuda/sparse/route.h"
#include "cuda/sparse/run.cuh"

namespace subbit {

cudaError_t launch_sparse_float32(const CudaParams& params, const CudaOperands& operands, const SparsePlan& plan,
                                  cudaStream_t stream) {
  return run_sparse<__nv_bfloat16, 3>(params, operands, plan, stream);
}

}  // namespace subbit
