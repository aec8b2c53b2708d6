// Bits of 64 words exchanged with GFNI, for the ISA files.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace subbit {
namespace {

// Byte 8 * i + j of a register goes to 8 * j + i: the bytes of eight words become the words of eight bytes.
alignas(64) constexpr std::uint8_t kByteOrder[64] = {0, 8,  16, 24, 32, 40, 48, 56, 1, 9,  17, 25, 33, 41, 49, 57,
                                                     2, 10, 18, 26, 34, 42, 50, 58, 3, 11, 19, 27, 35, 43, 51, 59,
                                                     4, 12, 20, 28, 36, 44, 52, 60, 5, 13, 21, 29, 37, 45, 53, 61,
                                                     6, 14, 22, 30, 38, 46, 54, 62, 7, 15, 23, 31, 39, 47, 55, 63};
// The same from the last word to the first, as the matrices of GFNI have their rows.
alignas(64) constexpr std::uint8_t kReversed[64] = {56, 48, 40, 32, 24, 16, 8,  0, 57, 49, 41, 33, 25, 17, 9,  1,
                                                    58, 50, 42, 34, 26, 18, 10, 2, 59, 51, 43, 35, 27, 19, 11, 3,
                                                    60, 52, 44, 36, 28, 20, 12, 4, 61, 53, 45, 37, 29, 21, 13, 5,
                                                    62, 54, 46, 38, 30, 22, 14, 6, 63, 55, 47, 39, 31, 23, 15, 7};

// Word i bit j goes to byte j bit i: blocks of 8 x 8 bits become words, and each is transposed, as the matrix that is
// applied to the unit vectors.
inline __m512i transpose_8x64(__m512i words) {
  const __m512i units = _mm512_set1_epi64(static_cast<long long>(0x8040201008040201));
  return _mm512_gf2p8affine_epi64_epi8(units, _mm512_permutexvar_epi8(_mm512_load_si512(kReversed), words), 0);
}

// Word i bit j goes to word j bit i. A word is a row of eight blocks of 8 x 8 bits, and eight rows are a register:
// blocks become words, are transposed one by one (as the matrix that is applied to the unit vectors), and change
// places.
inline void transpose(std::uint64_t words[64]) {
  const __m512i order = _mm512_load_si512(kByteOrder);
  __m512i x[8], t[8];
  for (int i = 0; i < 8; ++i) x[i] = transpose_8x64(_mm512_loadu_si512(words + 8 * i));
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm512_unpacklo_epi64(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi64(x[i], x[i + 1]);
  }
  for (int i = 0; i < 2; ++i) {  // word 2 * k + i of every register
    const __m512i a = _mm512_shuffle_i64x2(t[i], t[i + 2], 0x88), b = _mm512_shuffle_i64x2(t[i], t[i + 2], 0xdd);
    const __m512i c = _mm512_shuffle_i64x2(t[i + 4], t[i + 6], 0x88),
                  d = _mm512_shuffle_i64x2(t[i + 4], t[i + 6], 0xdd);
    x[i] = _mm512_shuffle_i64x2(a, c, 0x88);
    x[i + 4] = _mm512_shuffle_i64x2(a, c, 0xdd);
    x[i + 2] = _mm512_shuffle_i64x2(b, d, 0x88);
    x[i + 6] = _mm512_shuffle_i64x2(b, d, 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    _mm512_storeu_si512(words + 8 * i, _mm512_permutexvar_epi8(order, x[i]));
  }
}

}  // namespace
}  // namespace subbit
