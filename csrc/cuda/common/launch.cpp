#include "cuda/common/launch.h"

#include "cuda/product/product.h"
#include "cuda/sharing/sharing.h"
#include "cuda/sharing/sharing_tile.h"
#include "cuda/sparse/sparse.h"

namespace subbit {

bool can_run(Route route, const CudaParams& params) {
  switch (route) {
    case Route::kSharing:
      return can_run_sharing(params);
    case Route::kProduct:
      return can_run_product(params);
    case Route::kSparse:
      return can_run_sparse(params);
  }
  return false;
}

std::int64_t weight_bytes(Route route, const CudaParams& params) {
  switch (route) {
    case Route::kProduct:
      return product_weight_bytes(params);
    case Route::kSparse:
      return sparse_weight_bytes(params);
    case Route::kSharing:
      break;
  }
  return 0;
}

cudaError_t prepare(Route route, const CudaParams& params, const std::uint32_t* indices, const Codeword* codebook,
                    void* weight, cudaStream_t stream) {
  switch (route) {
    case Route::kProduct:
      return prepare_product(params, indices, codebook, weight, stream);
    case Route::kSparse:
      return prepare_sparse(params, indices, weight, stream);
    case Route::kSharing:
      break;
  }
  return cudaSuccess;
}

std::int64_t scratch_bytes(Route route, const CudaParams& params, const CudaOperands& operands) {
  return route == Route::kSharing ? 0 : product_scratch_bytes(params, operands);  // the sparse route reads the same x
}

cudaError_t launch(Route route, const CudaParams& params, const CudaOperands& operands, cudaStream_t stream) {
  if (!can_run(route, params)) return cudaErrorNotSupported;
  const ConvProblem& conv = params.conv;
  if (conv.batch == 0 || conv.out_channels == 0 || conv.out_height == 0 || conv.out_width == 0) return cudaSuccess;
  switch (route) {
    case Route::kSharing:
      return launch_sharing(params, operands, stream);
    case Route::kProduct:
      return launch_product(params, operands, stream);
    case Route::kSparse:
      return launch_sparse(params, operands, stream);
  }
  return cudaErrorNotSupported;
}

}  // namespace subbit
