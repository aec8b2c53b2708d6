#include "cuda/product/route.h"
#include "cuda/sparse/prepare_weight.cuh"
#include "cuda/sparse/route.h"
#include "cuda/sparse/run.cuh"

namespace subbit {

bool can_run_sparse(const CudaParams& params) { return runs_sparse(params); }

std::int64_t sparse_weight_bytes(const CudaParams& params) {
  return sparse_weight_items(sparse_weight_shape(params)) * static_cast<std::int64_t>(sizeof(uint2));
}

cudaError_t prepare_sparse(const CudaParams& params, const std::uint32_t* indices, const Codeword*, void* weight,
                           cudaStream_t stream) {
  return start_prepare_sparse(params, indices, weight, stream);
}

std::int64_t sparse_scratch_bytes(const CudaParams& params, const CudaOperands& operands) {
  return product_scratch_bytes(params, operands);
}

cudaError_t launch_sparse(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream) {
  const SparsePlan plan = plan_sparse(params);
  if (params.element == Element::kFloat32) return launch_sparse_float32(params, operands, plan, stream);
  return launch_sparse_float16_bfloat16(params, operands, plan, stream);
}

}  // namespace subbit
