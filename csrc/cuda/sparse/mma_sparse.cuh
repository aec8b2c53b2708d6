// What the sparse route (kernel.cuh) takes of the tensor cores beside mma.cuh: products whose left matrix is 2:4
// sparse, and the loads that turn a tile of [k][row] into the registers of a left matrix; and what they are on the
// host.
#pragma once

#include <cstdint>

#include "cuda/common/mma.cuh"
#include "cuda/common/platform.h"

namespace subbit {

// D (16x8) = A (16x32) B (32x8) + D by one warp, where of every four neighbours in a row of A two at most are not 0.
//
// Which lane holds what is the PTX ISA's ("Matrix Fragments for sparse mma.m16n8k32 with .f16 and .bf16 types" and its
// metadata's figure; "Sparse matrix storage"). With g = lane / 4, t = lane % 4, and A's columns in eight groups of
// four:
//
//     register   a0        a1        a2          a3          b0 ... b3: register i has of column g
//     row        g         g + 8     g           g + 8       k = 8 i + 2 t and 8 i + 2 t + 1
//     group      t         t         t + 4       t + 4       D: as of m16n8k16 (mma.cuh)
//
// A register of A holds the two kept numbers of its group. The metadata name them, one nibble per group: the two lowest
// bits are the index of the first one in the group, the others that of the second. The selector i (0 or 1) picks the
// lanes with t / 2 = i: of these, lane (g, t) gives groups 4 (t % 2) + 0 to 3, of row g in its bits 0 to 15, of row g +
// 8 in bits 16 to 31. So one word per lane serves two products. Indices grow, so the ordered form will do.

#if defined(__CUDACC__)

// Other than ordered metadata may be slow on later devices (PTX ISA, "mma.sp"); the word came with PTX 8.5, CUDA 12.5.
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 5)
#define SUBBIT_MMA_SP "mma.sp::ordered_metadata.sync.aligned"
#else
#define SUBBIT_MMA_SP "mma.sp.sync.aligned"
#endif

template <int kSelector>
SUBBIT_DEVICE void mma_sparse(float (&d)[4], const FragmentA& a, const uint4& b, std::uint32_t metadata, __half) {
  asm(SUBBIT_MMA_SP
      ".m16n8k32.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w), "r"(metadata),
        "n"(kSelector));
}

template <int kSelector>
SUBBIT_DEVICE void mma_sparse(float (&d)[4], const FragmentA& a, const uint4& b, std::uint32_t metadata,
                              __nv_bfloat16) {
  asm(SUBBIT_MMA_SP
      ".m16n8k32.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w), "r"(metadata),
        "n"(kSelector));
}
#undef SUBBIT_MMA_SP

// Four 8x8 matrices of 16-bit numbers, each row 16 bytes of shared memory: lane l gives the address of row l % 8 of
// matrix l / 8. Register i of lane (g, t) becomes column g of rows 2 t and 2 t + 1 of matrix i (PTX ISA, "ldmatrix").
SUBBIT_DEVICE FragmentA load_transposed(const unsigned char* row) {
  const auto from = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  FragmentA a;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a.r[0]), "=r"(a.r[1]), "=r"(a.r[2]), "=r"(a.r[3])
               : "r"(from)
               : "memory");
  return a;
}

// Two numbers rounded to nearest even, `low` in the lower half.
SUBBIT_DEVICE std::uint32_t round_pair(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
SUBBIT_DEVICE std::uint32_t round_pair(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

#else

namespace shim {

struct SparseOperands {
  FragmentA a;
  uint4 b;
  std::uint32_t metadata;
};

template <class Half>
void multiply_sparse(float (&d)[4], const FragmentA& a, const uint4& b, std::uint32_t metadata, int selector) {
  const auto all = Block::current_block()->exchange(SparseOperands{a, b, metadata});
  const auto half = [](std::uint32_t word, int i) {
    return to_float(bits_as<Half>(static_cast<std::uint16_t>(word >> (16 * i))));
  };
  const int lane = static_cast<int>(threadIdx.x & 31);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2, quad = row % 8 * 4, is_lower = row / 8;
    for (int group = 0; group < 8; ++group) {
      const std::uint32_t kept = all[quad + group % 4].a.r[group / 4 * 2 + is_lower];
      const std::uint32_t nibbles = all[quad + selector * 2 + group / 4].metadata;
      const std::uint32_t nibble = nibbles >> (16 * is_lower + 4 * (group % 4)) & 15;
      const int index[2] = {static_cast<int>(nibble & 3), static_cast<int>(nibble >> 2)};
      if (index[0] >= index[1]) throw std::runtime_error("metadata are not ordered");
      for (int e = 0; e < 2; ++e) {
        const int k = 4 * group + index[e];
        const uint4& from = all[column * 4 + k % 8 / 2].b;
        const std::uint32_t words[4] = {from.x, from.y, from.z, from.w};
        d[i] += half(kept, e) * half(words[k / 8], k % 2);
      }
    }
  }
}

}  // namespace shim

template <int kSelector, class Half>
void mma_sparse(float (&d)[4], const FragmentA& a, const uint4& b, std::uint32_t metadata, Half) {
  shim::multiply_sparse<Half>(d, a, b, metadata, kSelector);
}

inline FragmentA load_transposed(const unsigned char* row) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) throw std::runtime_error("a row of a matrix is not aligned");
  const auto rows = shim::Block::current_block()->exchange(row);
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane / 4, t = lane % 4;
  FragmentA a{};
  for (int i = 0; i < 4; ++i) {
    for (int e = 0; e < 2; ++e) {
      std::uint16_t number;
      std::memcpy(&number, rows[i * 8 + 2 * t + e] + 2 * g, sizeof number);
      a.r[i] |= std::uint32_t{number} << (16 * e);
    }
  }
  return a;
}

template <class Half>
std::uint32_t round_pair(float low, float high, Half) {
  const auto bits = [](float v) { return shim::bits_as<std::uint16_t>(from_float<Half>(v)); };
  return bits(low) | std::uint32_t{bits(high)} << 16;
}

#endif

}  // namespace subbit
