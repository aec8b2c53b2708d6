#include "cuda/launch.h"

#include "cuda/product.h"
#include "cuda/sharing.h"
#include "cuda/sharing_tile.h"

namespace subbit {

bool can_run(Route route, const CudaParams& params) {
  switch (route) {
    case Route::kSharing:
      return can_run_sharing(params);
    case Route::kProduct:
      return can_run_product(params);
  }
  return false;
}

cudaError_t launch(Route route, const CudaParams& params, const CudaOperands& operands, cudaStream_t stream) {
  if (!can_run(route, params)) return cudaErrorNotSupported;
  const ConvParams& conv = params.conv;
  if (conv.batch == 0 || conv.out_channels == 0 || conv.out_height == 0 || conv.out_width == 0) return cudaSuccess;
  return route == Route::kSharing ? launch_sharing(params, operands, stream) : launch_product(params, operands, stream);
}

}  // namespace subbit
