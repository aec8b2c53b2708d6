// The tensor cores' products of small matrices, D (16x8) = A (16xK) B (Kx8) + D, by one warp; and what they are on the
// host.
//
// Which lane holds what is the PTX ISA's ("Matrix Fragments for mma.m16n8k16 with floating point type", "... for
// mma.m16n8k32", "... for mma.m16n8k256"). With g = lane / 4, t = lane % 4, and a *slot* of k of 4 bytes, which are 2
// float16, 4 int8 or 32 bits:
//
//     register   a0       a1         a2         a3           b0       b1         d0 d1          d2 d3
//     row        g        g + 8      g          g + 8                            g              g + 8
//     k          slot t   slot t     slot 4+t   slot 4+t     slot t   slot 4+t
//     column                                                 g        g          2t and 2t + 1
//
// A and B agree in which k a slot is, so any order of k will do as long as it is the same in both.
#pragma once

#include <cstdint>

#include "cuda/common/platform.h"

namespace subbit {

struct FragmentA {
  std::uint32_t r[4];
};
struct FragmentB {
  std::uint32_t r[2];
};

#if defined(__CUDACC__)

// Two float16 of +-1, in `ones` of +1, with the signs of bits 15 and 31. One operation, which ptxas makes two of by
// itself.
SUBBIT_DEVICE std::uint32_t with_signs(std::uint32_t ones, std::uint32_t signs) {
  std::uint32_t result;
  asm("lop3.b32 %0, %1, 0x80008000, %2, 0xea;" : "=r"(result) : "r"(signs), "r"(ones));
  return result;
}

// Native on sm_80 to sm_90. Later architectures emulate it by int8 products: right there too, but slow.
SUBBIT_DEVICE void mma_and_popc(std::int32_t (&d)[4], const FragmentA& a, const FragmentB& b) {
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
}

SUBBIT_DEVICE void mma(float (&d)[4], const FragmentA& a, const FragmentB& b, __half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
}

SUBBIT_DEVICE void mma(float (&d)[4], const FragmentA& a, const FragmentB& b, __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
}

// Sums in int32: exact below 2^31.
SUBBIT_DEVICE void mma(std::int32_t (&d)[4], const FragmentA& a, const FragmentB& b, std::int8_t) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
}

#else

namespace shim {

struct Fragments {
  FragmentA a;
  FragmentB b;
};

// Adds `product` of every pair of registers that hold the same slot, slot by slot.
template <class T, class Product>
void multiply(T (&d)[4], const FragmentA& a, const FragmentB& b, const Product& product) {
  const auto all = Block::current_block()->exchange(Fragments{a, b});
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row_half = i / 2, column = 2 * t + i % 2;
    for (int slot = 0; slot < 8; ++slot) {
      const std::uint32_t from_a = all[g * 4 + slot % 4].a.r[row_half + slot / 4 * 2];
      const std::uint32_t from_b = all[column * 4 + slot % 4].b.r[slot / 4];
      product(d[i], from_a, from_b);
    }
  }
}

template <class Half>
void multiply_float16(float (&d)[4], const FragmentA& a, const FragmentB& b) {
  multiply(d, a, b, [](float& sum, std::uint32_t x, std::uint32_t y) {
    const auto half = [](std::uint32_t v) { return to_float(bits_as<Half>(static_cast<std::uint16_t>(v))); };
    sum += half(x) * half(y);
    sum += half(x >> 16) * half(y >> 16);
  });
}

}  // namespace shim

inline std::uint32_t with_signs(std::uint32_t ones, std::uint32_t signs) { return ones | (signs & 0x80008000u); }

inline void mma_and_popc(std::int32_t (&d)[4], const FragmentA& a, const FragmentB& b) {
  shim::multiply(d, a, b, [](std::int32_t& sum, std::uint32_t x, std::uint32_t y) { sum += __popc(x & y); });
}
inline void mma(float (&d)[4], const FragmentA& a, const FragmentB& b, __half) {
  shim::multiply_float16<__half>(d, a, b);
}
inline void mma(float (&d)[4], const FragmentA& a, const FragmentB& b, __nv_bfloat16) {
  shim::multiply_float16<__nv_bfloat16>(d, a, b);
}
inline void mma(std::int32_t (&d)[4], const FragmentA& a, const FragmentB& b, std::int8_t) {
  shim::multiply(d, a, b, [](std::int32_t& sum, std::uint32_t x, std::uint32_t y) {
    const auto byte = [](std::uint32_t v, int i) { return static_cast<std::int8_t>(v >> (8 * i) & 0xff); };
    for (int i = 0; i < 4; ++i) sum += byte(x, i) * byte(y, i);
  });
}

#endif

// Writes D to [column][row], its first column and row at these; by lane (g, t).
template <class Sum, int kRows>
SUBBIT_DEVICE void share_fragment(Sum (*to)[kRows], int column, int row, int g, int t, const Sum (&d)[4]) {
  SUBBIT_UNROLL
  for (int i = 0; i < 4; ++i) to[column + 2 * t + i % 2][row + g + i / 2 * 8] = d[i];
}

}  // namespace subbit
