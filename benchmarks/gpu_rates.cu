// What a GPU can do at best, by loops that do nothing else: shared-memory loads, and products of matrices by mma.sync,
// which the kernels of this package use. Prints a name and 10^12 a second a line: bytes, or multiply-adds.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr int kThreads = 512, kRounds = 4096, kChains = 8, kRuns = 5;

// Every lane loads 16 bytes of a row that the warp reads without conflicts; what is loaded says what is loaded next.
__global__ void load_shared(std::uint32_t* out) {
  __shared__ uint4 rows[kThreads];
  rows[threadIdx.x] = make_uint4(0, 0, 0, 0);
  __syncthreads();
  std::uint32_t sum = 0, address = static_cast<std::uint32_t>(__cvta_generic_to_shared(&rows[threadIdx.x]));
  for (int i = 0; i < kRounds; i += kChains) {
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) {
      uint4 v;
      asm volatile("ld.volatile.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                   : "r"(address));
      sum ^= v.x ^ v.y ^ v.z ^ v.w;  // all of it, or less would be loaded
    }
    address += sum;  // 0
  }
  if (sum != 0) *out = sum;
}

struct Halves {
  using Sum = float;
  static __device__ void multiply(Sum (&d)[4], std::uint32_t zero) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%4, %4}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(zero));
  }
};

// Half of the left matrix is zeros that are left out; 0x44444444 keeps the first two of each four.
struct SparseHalves {
  using Sum = float;
  static __device__ void multiply(Sum (&d)[4], std::uint32_t zero) {
    asm volatile(
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, "
        "{%4, %4, %4, %4}, {%0, %1, %2, %3}, %5, 0;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(zero), "r"(0x44444444u));
  }
};

struct Bits {
  using Sum = std::int32_t;
  static __device__ void multiply(Sum (&d)[4], std::uint32_t zero) {
    asm volatile(
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%4, %4}, "
        "{%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(zero));
  }
};

template <class Product>
__global__ void multiply(std::uint32_t* out) {
  typename Product::Sum d[kChains][4] = {};
  const std::uint32_t zero = *out;
  for (int i = 0; i < kRounds; i += kChains) {
#pragma unroll
    for (auto& chain : d) Product::multiply(chain, zero);
  }
  typename Product::Sum sum = 0;
  for (auto& chain : d) sum += chain[0] + chain[1] + chain[2] + chain[3];
  if (sum != 0) *out = 1;
}

void expect(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

void measure(const char* name, void (*kernel)(std::uint32_t*), double of_warp_and_round, int blocks,
             std::uint32_t* out) {
  cudaEvent_t begin, end;
  expect(cudaEventCreate(&begin));
  expect(cudaEventCreate(&end));
  float best = 0;
  for (int run = 0; run <= kRuns; ++run) {  // the first does not count
    expect(cudaEventRecord(begin));
    kernel<<<blocks, kThreads>>>(out);
    expect(cudaGetLastError());
    expect(cudaEventRecord(end));
    expect(cudaEventSynchronize(end));
    float ms = 0;
    expect(cudaEventElapsedTime(&ms, begin, end));
    if (run == 1 || (run > 1 && ms < best)) best = ms;
  }
  const double done = of_warp_and_round * kRounds * (kThreads / 32.0) * blocks;
  std::printf("%s %.4g\n", name, done / (best * 1e-3) / 1e12);
}

}  // namespace

int main() {
  int multiprocessors = 0;
  expect(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  std::uint32_t* out = nullptr;
  expect(cudaMalloc(&out, sizeof *out));
  expect(cudaMemset(out, 0, sizeof *out));
  measure("shared_bytes", load_shared, 512, multiprocessors * 8, out);
  measure("half_mma_macs", multiply<Halves>, 16 * 8 * 16, multiprocessors * 8, out);
  measure("sparse_half_mma_macs", multiply<SparseHalves>, 16 * 8 * 32, multiprocessors * 8, out);  // zeros counted
  measure("bit_mma_macs", multiply<Bits>, 16 * 8 * 256, multiprocessors * 8, out);
  return 0;
}
