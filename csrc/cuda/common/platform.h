// What kernel bodies are written in: CUDA's own words where nvcc compiles them, and the same words from the host shim
// where a C++ compiler does, so that tests run the very bodies on the CPU.
#pragma once

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define SUBBIT_DEVICE __device__ __forceinline__
#define SUBBIT_HOST_DEVICE __host__ __device__ __forceinline__
#define SUBBIT_UNROLL _Pragma("unroll")
#define SUBBIT_UNROLL_4 _Pragma("unroll 4")
#define SUBBIT_ROLLED _Pragma("unroll 1")  // the loop stays one: where code is long

namespace subbit {

// The block's dynamic shared memory.
SUBBIT_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory;
}

}  // namespace subbit

#else

#include "cuda/common/shim.h"

#define SUBBIT_DEVICE inline
#define SUBBIT_HOST_DEVICE inline
#define SUBBIT_UNROLL
#define SUBBIT_UNROLL_4
#define SUBBIT_ROLLED

#endif

namespace subbit {

// Elements to and from the float32 that everything is computed in.
SUBBIT_DEVICE float to_float(float v) { return v; }
SUBBIT_DEVICE float to_float(__half v) { return __half2float(v); }
SUBBIT_DEVICE float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T>
SUBBIT_DEVICE T from_float(float v);
template <>
SUBBIT_DEVICE float from_float<float>(float v) {
  return v;
}
template <>
SUBBIT_DEVICE __half from_float<__half>(float v) {
  return __float2half_rn(v);
}
template <>
SUBBIT_DEVICE __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

}  // namespace subbit
