// The paper's kernel: responses of every codeword in shared memory, gathered through packed indices.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/common/params.h"
#include "cuda/sharing/tile.h"

namespace subbit {

// It reads the packed indices and x as they are: no prepared weight, no scratch memory.
inline std::int64_t sharing_weight_bytes(const CudaParams&) { return 0; }
inline std::int64_t sharing_scratch_bytes(const CudaParams&, const CudaOperands&) { return 0; }
inline cudaError_t prepare_sharing(const CudaParams&, const std::uint32_t*, const Codeword*, void*, cudaStream_t) {
  return cudaSuccess;
}

// Called by launch(), for problems that it can run and that are not empty.
cudaError_t launch_sharing(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream);

}  // namespace subbit
