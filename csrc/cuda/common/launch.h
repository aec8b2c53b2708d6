// Starting kernels. Nothing here waits for the device, allocates, or keeps state, so every launch can be captured in a
// CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/common/params.h"

namespace subbit {

enum class Route {
#define SUBBIT_CUDA_ROUTE(enumerator, name) enumerator,
#include "cuda/routes.inc"
};

// Whether a route has a kernel for the problem.
bool can_run(Route route, const CudaParams& params);

// Bytes of the weight as the route's kernels read it, CudaOperands::prepared_weight; 0: they read the indices alone.
std::int64_t weight_bytes(Route route, const CudaParams& params);

// Starts making such a weight, 16-byte aligned, of packed indices and a codebook as CudaOperands has them.
cudaError_t prepare(Route route, const CudaParams& params, const std::uint32_t* indices, const Codeword* codebook,
                    void* weight, cudaStream_t stream);

// Bytes of scratch memory that a call with these operands needs, of which only the address of x counts.
std::int64_t scratch_bytes(Route route, const CudaParams& params, const CudaOperands& operands);

// Starts the route's kernels on the stream, on the current device. cudaErrorNotSupported where the route cannot run
// the problem. Empty problems are no error and start nothing.
cudaError_t launch(Route route, const CudaParams& params, const CudaOperands& operands, cudaStream_t stream);

}  // namespace subbit
