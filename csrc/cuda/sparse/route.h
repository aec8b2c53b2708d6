// The sparse route (kernel.cuh): what launch() calls, and what its callers prepare.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/common/params.h"
#include "cuda/sparse/box.h"

namespace subbit {

// Whether the route has a kernel for the problem: 3x3 units of at most 8 codewords, float activations, and a tile of x
// that fits a block's shared memory, which large strides and dilations do not; see run.cuh.
bool can_run_sparse(const CudaParams& params);

// Bytes of a prepared weight. They, and what is in them, depend on the number of codewords, channels, outputs and
// groups alone.
std::int64_t sparse_weight_bytes(const CudaParams& params);

// Makes the prepared weight, 16-byte aligned, of packed indices as CudaOperands has them; reads no codebook.
cudaError_t prepare_sparse(const CudaParams& params, const std::uint32_t* indices, const Codeword* codebook,
                           void* weight, cudaStream_t stream);

// Bytes of scratch memory that a call with these operands needs: x rearranged, as for the product.
std::int64_t sparse_scratch_bytes(const CudaParams& params, const CudaOperands& operands);

// Called by launch(), for problems that it can run and that are not empty.
cudaError_t launch_sparse(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream);

// The same for 16-bit and for 32-bit activations; each in a file of its own.
cudaError_t launch_sparse_float16_bfloat16(const CudaParams& params, const CudaOperands& operands,
                                           const SparsePlan& plan, cudaStream_t stream);
cudaError_t launch_sparse_float32(const CudaParams& params, const CudaOperands& operands, const SparsePlan& plan,
                                  cudaStream_t stream);

}  // namespace subbit
