#include "cuda/sharing/kernel.cuh"
#include "cuda/sharing/route.h"

namespace subbit {
namespace {

template <class Kernel>
__global__ void __launch_bounds__(kSharingWarps* kWarp) sharing_kernel(const __grid_constant__ SharingTask task) {
  Kernel(task).run();
}

cudaError_t limits_of_device(DeviceLimits& limits) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto get = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device);
  };
  get(limits.multiprocessors, cudaDevAttrMultiProcessorCount);
  get(limits.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  get(limits.shared_per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  return error;
}

cudaError_t clear_words(const SharingTask& task, cudaStream_t stream) {
  const ConvProblem& conv = task.params.conv;
  const auto bytes = static_cast<std::size_t>(conv.batch * conv.out_height * conv.out_width * task.words * 8);
  cudaError_t error = cudaMemsetAsync(task.operands.y_plus, 0, bytes, stream);
  if (error == cudaSuccess && task.operands.y_nonzero) {
    error = cudaMemsetAsync(task.operands.y_nonzero, 0, bytes, stream);
  }
  return error;
}

}  // namespace

cudaError_t launch_sharing(const CudaParams& params, const CudaOperands& operands, cudaStream_t stream) {
  DeviceLimits limits;
  cudaError_t error = limits_of_device(limits);
  if (error != cudaSuccess) return error;
  const SharingTask task = sharing_task(params, operands, plan_sharing(params, limits));
  if (task.tile.words_per_lane == 0) return cudaErrorNotSupported;
  const std::int64_t blocks = task.tile.blocks(params);
  if (blocks >= std::int64_t{1} << 31) return cudaErrorInvalidConfiguration;
  if (clears_words(task)) error = clear_words(task, stream);
  if (error != cudaSuccess) return error;
  return with_sharing(task, [&](auto kind) {
    const auto kernel = sharing_kernel<typename decltype(kind)::type>;
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, task.tile.shared_bytes);
    if (error != cudaSuccess) return error;
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(task.tile.warps * kWarp),
             static_cast<std::size_t>(task.tile.shared_bytes), stream>>>(task);
    return cudaGetLastError();
  });
}

}  // namespace subbit
