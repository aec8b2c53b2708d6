// Starting kernels. Nothing here waits for the device, allocates, or keeps state, so every launch can be captured in a
// CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/params.h"

namespace subbit {

enum class Route { kSharing = 0, kProduct = 1 };

// Whether a route has a kernel for the problem.
bool can_run(Route route, const CudaParams& params);

// Starts the route's kernels on the stream, on the current device. cudaErrorNotSupported where the route cannot run
// the problem. Empty problems are no error and start nothing.
cudaError_t launch(Route route, const CudaParams& params, const CudaOperands& operands, cudaStream_t stream);

}  // namespace subbit
