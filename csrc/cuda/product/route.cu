#include "cuda/product/input.cuh"
#include "cuda/product/prepare_weight.cuh"
#include "cuda/product/route.h"
#include "cuda/product/wgmma_tile.cuh"

namespace subbit {

bool can_run_product(const CudaParams& params) { return runs_product(params); }

std::int64_t product_weight_bytes(const CudaParams& params) { return prepared_bytes(params); }

cudaError_t prepare_product(const CudaParams& params, const std::uint32_t* indices, const Codeword* codebook,
                            void* weight, cudaStream_t stream) {
  return start_prepare(params, indices, codebook, weight, stream);
}

std::int64_t product_scratch_bytes(const CudaParams& params, const CudaOperands& operands) {
  return scratch_bytes(params, operands);
}

cudaError_t launch_product(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream) {
  if (multiplies_bits(params)) return launch_product_bits(params, operands, stream);
  if (is_binary(params)) return launch_product_int8(params, operands, stream);
  if (runs_wgmma(params)) return launch_product_wgmma(params, operands, stream);
  if (params.element == Element::kFloat32) return launch_product_float32(params, operands, stream);
  return launch_product_float16_bfloat16(params, operands, stream);
}

cudaError_t launch_pack(const PackCall& call, cudaStream_t stream) {
  return start_pack({call.batch, call.height, call.width, 1, call.channels, call.x, call.element, call.x_n, call.x_c,
                     call.x_h, call.x_w, call.shift, call.nonzero == nullptr,
                     reinterpret_cast<std::uint32_t*>(call.plus), reinterpret_cast<std::uint32_t*>(call.nonzero)},
                    stream);
}

}  // namespace subbit
