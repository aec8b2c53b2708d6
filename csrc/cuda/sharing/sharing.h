// The paper's kernel: responses of every codeword in shared memory, gathered through packed indices.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/common/params.h"

namespace subbit {

// Called by launch(), for problems that it can run and that are not empty.
cudaError_t launch_sharing(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream);

}  // namespace subbit
