// The tensor cores' route (kernel.cuh): what launch() calls, and what its callers prepare.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/common/params.h"

namespace subbit {

// Whether the product has a kernel for the problem: nearly all; see run.cuh.
bool can_run_product(const CudaParams& params);

// Bytes of a prepared weight. They, and what is in them, depend on the unit, the number of codewords, channels,
// outputs, groups, whether activations are binary, and then on has_bit_products; not on element, sizes or strides.
std::int64_t product_weight_bytes(const CudaParams& params);

// Makes the prepared weight, 16-byte aligned, of packed indices and a codebook as CudaOperands has them.
cudaError_t prepare_product(const CudaParams& params, const std::uint32_t* indices, const Codeword* codebook,
                            void* weight, cudaStream_t stream);

// Bytes of scratch memory that a call with these operands needs, of which only the address of x counts.
std::int64_t product_scratch_bytes(const CudaParams& params, const CudaOperands& operands);

// Called by launch(), for problems that it can run and that are not empty.
cudaError_t launch_product(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream);

// The same for one type of activations, or by Hopper's wgmma; each in a file of its own.
cudaError_t launch_product_bits(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream);
// cudaErrorNotSupported on architectures before the last of the build.
cudaError_t launch_product_int8(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream);
cudaError_t launch_product_float16_bfloat16(const CudaParams& params, const CudaOperands& operands,
                                            cudaStream_t stream);
cudaError_t launch_product_float32(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream);
cudaError_t launch_product_wgmma(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream);

// Packs the signs of x + shift: x is of any strides, and shift (channels,) float32 or null. Where nonzero is null,
// zeros count as +1.
struct PackCall {
  std::int64_t batch, channels, height, width;
  std::int64_t x_n, x_c, x_h, x_w;
  Element element;
  const void* x;
  const float* shift;
  std::uint64_t* plus;  // [n][row][column][word]
  std::uint64_t* nonzero;
};
cudaError_t launch_pack(const PackCall& call, cudaStream_t stream);

}  // namespace subbit
