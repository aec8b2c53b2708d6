// The products of matrices of a warpgroup (four warps, 128 threads) that go on while its threads do other things:
// D (64 x N) = A (64 x 16) B (16 x N) + D, A and D in registers, B in shared memory. Only sm_90a has them. On the host
// the same by wgmma_shim.h.
//
// What is what is the PTX ISA's ("Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions").
//
// A and D ("Register Fragments": "... for wgmma.mma_async.m64nNk16"): warp w of the four has rows 16 w to 16 w + 15, in
// them lane (g, t) holds of A, and of each eight columns of D, what mma.m16n8k16 gives it (mma.cuh).
//
// B ("Shared Memory Matrix Layout", "Strides", "Matrix Descriptor Format"): K-major with the 128-byte swizzle. A row,
// which is a column of B, has 128 bytes, 64 numbers along K; eight rows are 1024 bytes, aligned to as many, and the
// next eight follow. Row r's 16 bytes number p lie where those of number p ^ r % 8 would. A descriptor names the
// address (by 16 bytes, 18 bits of it), the distance of one eight rows from the next (1024 bytes, by 16) and the
// swizzle (1 in the two highest bits); the other stride is not used for this layout and said to be taken as 1. The
// swizzle is of the address' bits, 4 to 6 by 7 to 9, so 16 numbers further along K are 32 bytes further in the address;
// that they are is in no sentence of the ISA but is what public kernels rely on.
//
// Order ("Async Proxy", "wgmma.fence"): the products read shared memory by the asynchronous proxy, so who wrote it
// fences, then comes a barrier, then the product. A fence of registers comes before the first product and between
// whatever a thread did to registers of A or D and a product with them (but for D of products of one shape, one after
// the other). Until a product's group has been waited for, its A may not be written, its D neither read nor written,
// its B not overwritten; when it has been, no fence is needed before B is written again.
#pragma once

#include <cstdint>

#include "cuda/common/mma.cuh"
#include "cuda/common/platform.h"

#if !defined(__CUDACC__)
#include "cuda/common/wgmma_shim.h"
#elif defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "only for sm_90a"
#endif

namespace subbit {

constexpr int kWarpgroupThreads = 128;
constexpr int kWarpgroupOutputs = 64;  // rows of A and D
constexpr int kSliceNumbers = 16;      // of K, of one product
constexpr int kSwizzleBytes = 128, kSwizzleRows = 8, kSwizzlePieceBytes = 16;
constexpr int kSwizzleAlignment = kSwizzleBytes * kSwizzleRows;

// Where 16 bytes of a row lie.
SUBBIT_HOST_DEVICE int swizzled(int row, int piece) {
  return row * kSwizzleBytes + (piece ^ row % kSwizzleRows) * kSwizzlePieceBytes;
}

// `start` is an address in shared memory.
SUBBIT_HOST_DEVICE std::uint64_t swizzled_descriptor(std::uint32_t start) {
  constexpr std::uint64_t kUnused = std::uint64_t{1} << 16, kSwizzle = std::uint64_t{1} << 62;
  constexpr std::uint64_t kStride = std::uint64_t{kSwizzleAlignment / 16} << 32;
  return (start & 0x3ffffu) >> 4 | kUnused | kStride | kSwizzle;
}

#if defined(__CUDACC__)

SUBBIT_DEVICE std::uint32_t shared_address(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

// What this thread, and copies that it has waited for, wrote to shared memory is there for products after a barrier.
SUBBIT_DEVICE void fence_for_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

SUBBIT_DEVICE void fence_registers() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

SUBBIT_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits for the warpgroup's groups but for the last kGroups.
template <int kGroups>
SUBBIT_DEVICE void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// The compiler knows nothing of products that go on: these keep it from using the registers before a wait, or from
// making them ready before it.
SUBBIT_DEVICE void settle(FragmentA& a) {
  asm volatile("" : "+r"(a.r[0]), "+r"(a.r[1]), "+r"(a.r[2]), "+r"(a.r[3])::"memory");
}
template <int kFragments>
SUBBIT_DEVICE void settle(float (&d)[kFragments][4]) {
  SUBBIT_UNROLL
  for (int n = 0; n < kFragments; ++n) {
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
  }
}

#define SUBBIT_D1(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define SUBBIT_D4(n) SUBBIT_D1(n), SUBBIT_D1(n + 1), SUBBIT_D1(n + 2), SUBBIT_D1(n + 3)
#define SUBBIT_D64                                                         \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SUBBIT_D128                                                                  \
  SUBBIT_D64                                                                         \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// Starts D = A B + D, or D = A B where it does not add.
SUBBIT_DEVICE void multiply_async(float (&d)[16][4], const FragmentA& a, std::uint64_t b, bool adds, __half) {
  asm volatile(
      "{\n.reg .pred adds;\nsetp.ne.b32 adds, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" SUBBIT_D128
      "}, {%64, %65, %66, %67}, %68, adds, 1, 1, 0;\n}"
      : SUBBIT_D4(0), SUBBIT_D4(4), SUBBIT_D4(8), SUBBIT_D4(12)
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b), "r"(static_cast<int>(adds)));
}
SUBBIT_DEVICE void multiply_async(float (&d)[16][4], const FragmentA& a, std::uint64_t b, bool adds, __nv_bfloat16) {
  asm volatile(
      "{\n.reg .pred adds;\nsetp.ne.b32 adds, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SUBBIT_D128
      "}, {%64, %65, %66, %67}, %68, adds, 1, 1, 0;\n}"
      : SUBBIT_D4(0), SUBBIT_D4(4), SUBBIT_D4(8), SUBBIT_D4(12)
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b), "r"(static_cast<int>(adds)));
}
SUBBIT_DEVICE void multiply_async(float (&d)[8][4], const FragmentA& a, std::uint64_t b, bool adds, __nv_bfloat16) {
  asm volatile(
      "{\n.reg .pred adds;\nsetp.ne.b32 adds, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" SUBBIT_D64
      "}, {%32, %33, %34, %35}, %36, adds, 1, 1, 0;\n}"
      : SUBBIT_D4(0), SUBBIT_D4(4)
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b), "r"(static_cast<int>(adds)));
}

#undef SUBBIT_D1
#undef SUBBIT_D4
#undef SUBBIT_D64
#undef SUBBIT_D128

#endif

}  // namespace subbit
