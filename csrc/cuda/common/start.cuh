// Starting a kernel whose body is Body::run(args), with blocks of Body::kThreads threads: on the device's stream, or by
// the host shim.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/common/platform.h"

namespace subbit {

#if defined(__CUDACC__)

using Status = cudaError_t;
using Stream = cudaStream_t;
constexpr Status kStarted = cudaSuccess;

template <class Body, class Args>
__global__ void __launch_bounds__(Body::kThreads, Body::kBlocksPerMultiprocessor)
    body_kernel(const __grid_constant__ Args args) {
  Body::run(args);
}

template <class Body, class Args>
Status start(std::int64_t blocks, std::size_t shared_bytes, const Args& args, Stream stream) {
  const auto kernel = reinterpret_cast<const void*>(body_kernel<Body, Args>);
  constexpr std::size_t kAlwaysAllowed = 48 << 10;
  if (shared_bytes > kAlwaysAllowed) {
    const Status status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return status;
  }
  void* arguments[] = {const_cast<Args*>(&args)};
  return cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(Body::kThreads), arguments, shared_bytes,
                          stream);
}

#else

using Status = int;
struct Stream {};
constexpr Status kStarted = 0;

template <class Body, class Args>
Status start(std::int64_t blocks, std::size_t shared_bytes, const Args& args, Stream) {
  shim::launch({static_cast<unsigned>(blocks), 1, 1}, {Body::kThreads, 1, 1}, shared_bytes, [&] { Body::run(args); });
  return kStarted;
}

#endif

// Blocks of the last dimension that a grid may have.
constexpr std::int64_t kMostBlocks = (std::int64_t{1} << 31) - 1;

// Blocks of a body that loops over items: enough to fill any device, so that no thread has long loops.
constexpr std::int64_t blocks_for(std::int64_t items, int threads) {
  constexpr std::int64_t kMost = 1 << 16;  // of up to 2^10 threads
  const std::int64_t blocks = (items + threads - 1) / threads;
  return blocks < kMost ? blocks : kMost;
}

// The number of this thread among all of the grid, and of all threads: for bodies that loop over items.
SUBBIT_DEVICE std::uint32_t thread_of_grid() { return blockIdx.x * blockDim.x + threadIdx.x; }
SUBBIT_DEVICE std::uint32_t threads_of_grid() { return gridDim.x * blockDim.x; }

// Items are counted in 32 bits (64-bit divisions would be calls), and a loop may go one grid beyond them.
constexpr std::int64_t kMostItems = (std::int64_t{1} << 32) - (std::int64_t{1} << 26);

}  // namespace subbit
