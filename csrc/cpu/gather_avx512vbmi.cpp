// Stage 2 of the tables layout: vpermb looks up 64 output channels of one pixel and unit at a time.
#include <immintrin.h>

#include "cpu/finish_avx512.h"
#include "cpu/kernels.h"

namespace subbit {
namespace {

// A biased response is at most 18 (nine taps), so a byte holds the sum of 14 units (252).
constexpr int kUnitsPerByteSum = 14;

// Adds bytes to the 16-bit sums of the same 64 channels. Even bytes are channels 0..31 and odd bytes 32..63
// (the order is put into the positions), so no byte has to change lanes.
inline void widen(__m512i bytes, std::uint16_t* sums) {
  const __m512i even = _mm512_and_si512(bytes, _mm512_set1_epi16(0xff));
  const __m512i odd = _mm512_srli_epi16(bytes, 8);
  _mm512_store_si512(sums, _mm512_add_epi16(_mm512_load_si512(sums), even));
  _mm512_store_si512(sums + 32, _mm512_add_epi16(_mm512_load_si512(sums + 32), odd));
}

// kPixels pixels times kVectors * 64 channels: their byte sums stay in registers over kUnitsPerByteSum units.
// A register of tables holds kSlots units.
template <int kSlots, int kVectors, int kPixels>
inline void gather(const GatherTablesTask& task, int first_pixel, std::int64_t first_output) {
  constexpr int kGroup = kUnitsPerByteSum / kSlots;
  const std::int64_t vector_stride = std::int64_t{task.registers} * kSlots * 64;
  const std::uint8_t* positions = task.positions + first_output / 64 * vector_stride;
  const std::uint8_t* tables = task.tables + first_pixel * task.table_stride;
  std::uint16_t* sums = task.sums + first_pixel * task.outputs + first_output;
  for (int start = 0; start < task.registers; start += kGroup) {
    const int end = start + kGroup < task.registers ? start + kGroup : task.registers;
    __m512i acc[kPixels][kVectors];
    for (auto& pixel : acc) {
      for (auto& sum : pixel) sum = _mm512_setzero_si512();
    }
    for (int r = start; r < end; ++r) {
      for (int s = 0; s < kSlots; ++s) {
        __m512i position[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          position[v] = _mm512_load_si512(positions + v * vector_stride + (r * kSlots + s) * 64);
        }
        for (int p = 0; p < kPixels; ++p) {
          const __m512i table = _mm512_load_si512(tables + p * task.table_stride + r * 64);
          for (int v = 0; v < kVectors; ++v) {
            acc[p][v] = _mm512_add_epi8(acc[p][v], _mm512_permutexvar_epi8(position[v], table));
          }
        }
      }
    }
    for (int p = 0; p < kPixels; ++p) {
      for (int v = 0; v < kVectors; ++v) widen(acc[p][v], sums + p * task.outputs + v * 64);
    }
  }
}

template <int kSlots, int kPixels>
inline void gather_outputs(const GatherTablesTask& task, int first_pixel) {
  std::int64_t o = 0;
  for (; o + 128 <= task.outputs; o += 128) gather<kSlots, 2, kPixels>(task, first_pixel, o);
  if (o < task.outputs) gather<kSlots, 1, kPixels>(task, first_pixel, o);
}

template <int kSlots>
inline void gather_pixels(const GatherTablesTask& task) {
  int p = 0;
  for (; p + 8 <= task.pixels; p += 8) gather_outputs<kSlots, 8>(task, p);
  for (; p + 4 <= task.pixels; p += 4) gather_outputs<kSlots, 4>(task, p);
  for (; p < task.pixels; ++p) gather_outputs<kSlots, 1>(task, p);
}

}  // namespace

void gather_binary_tables_avx512vbmi(const GatherTablesTask& task) {
  switch (task.slot) {
    case 64:
      return gather_pixels<1>(task);
    case 32:
      return gather_pixels<2>(task);
    case 16:
      return gather_pixels<4>(task);
    default:
      return gather_pixels<8>(task);
  }
}

void finish_binary_tables_avx512vbmi(const FinishTask& task) { finish_by_pixel(task); }

}  // namespace subbit
