#include "cuda/common/launch.h"

#include "cuda/product/route.h"
#include "cuda/sharing/route.h"
#include "cuda/sparse/route.h"

namespace subbit {

bool can_run(Route route, const CudaParams& params) {
  switch (route) {
#define SUBBIT_CUDA_ROUTE(enumerator, name) \
  case Route::enumerator:                   \
    return can_run_##name(params);
#include "cuda/routes.inc"
  }
  return false;
}

std::int64_t weight_bytes(Route route, const CudaParams& params) {
  switch (route) {
#define SUBBIT_CUDA_ROUTE(enumerator, name) \
  case Route::enumerator:                   \
    return name##_weight_bytes(params);
#include "cuda/routes.inc"
  }
  return 0;
}

cudaError_t prepare(Route route, const CudaParams& params, const std::uint32_t* indices, const Codeword* codebook,
                    void* weight, cudaStream_t stream) {
  switch (route) {
#define SUBBIT_CUDA_ROUTE(enumerator, name) \
  case Route::enumerator:                   \
    return prepare_##name(params, indices, codebook, weight, stream);
#include "cuda/routes.inc"
  }
  return cudaErrorNotSupported;
}

std::int64_t scratch_bytes(Route route, const CudaParams& params, const CudaOperands& operands) {
  switch (route) {
#define SUBBIT_CUDA_ROUTE(enumerator, name) \
  case Route::enumerator:                   \
    return name##_scratch_bytes(params, operands);
#include "cuda/routes.inc"
  }
  return 0;
}

cudaError_t launch(Route route, const CudaParams& params, const CudaOperands& operands, cudaStream_t stream) {
  if (!can_run(route, params)) return cudaErrorNotSupported;
  const ConvProblem& conv = params.conv;
  if (conv.batch == 0 || conv.out_channels == 0 || conv.out_height == 0 || conv.out_width == 0) return cudaSuccess;
  switch (route) {
#define SUBBIT_CUDA_ROUTE(enumerator, name) \
  case Route::enumerator:                   \
    return launch_##name(params, operands, stream);
#include "cuda/routes.inc"
  }
  return cudaErrorNotSupported;
}

}  // namespace subbit
