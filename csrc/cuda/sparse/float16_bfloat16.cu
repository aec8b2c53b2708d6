// float16 and bfloat16: one part.
#include "cuda/sparse/route.h"
#include "cuda/sparse/run.cuh"

namespace subbit {

cudaError_t launch_sparse_float16_bfloat16(const CudaParams& params, const CudaOperands& operands,
                                           const SparsePlan& plan, cudaStream_t stream) {
  if (params.element == Element::kFloat16) return run_sparse<__half, 1>(params, operands, plan, stream);
  return run_sparse<__nv_bfloat16, 1>(params, operands, plan, stream);
}

}  // namespace subbit
