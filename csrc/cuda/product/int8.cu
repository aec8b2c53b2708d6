#include "cuda/product/int8.cuh"
#include "cuda/product/route.h"

namespace subbit {

// Compiled for the last architecture of the build alone (CMakeLists.txt); refused before anything starts on older ones.
cudaError_t launch_product_int8(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream) {
  int device = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) return error;
  if (major * 10 + minor < SUBBIT_CUDA_LAST_ARCHITECTURE) return cudaErrorNotSupported;
  return run_product_int8(params, operands, stream);
}

}  // namespace subbit
