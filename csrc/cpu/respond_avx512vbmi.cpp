// Stage 1 of the tables layout for binary activations: patches become numbers, numbers look up responses.
//
// A patch with zeros has two numbers (NumberTask). The response is linear in each tap, hence
//
//     response(patch) = (response(low) + response(high)) / 2
//
// exactly, for both have the same parity. The table is biased to be unsigned (R + taps), which makes the
// halved sum one vpavgb; and most patches hold no zero, so low = high and one look-up is enough.
#include <immintrin.h>

#include <type_traits>

#include "core/phases.h"
#include "cpu/kernels.h"

namespace subbit {
namespace {

// Up to 64 taps as bits: `low` has a 1 for +1, `high` for +1 and 0.
struct Bits {
  std::uint64_t low, high;
};

// Up to 64 neighbouring inputs; bits from n on are 0 in low and 1 in high, as for padding.
inline Bits load_bits(const float* p, int n, bool sign_zero) {
  Bits bits{0, ~std::uint64_t{0}};
  const __m512 zero = _mm512_setzero_ps();
  for (int i = 0; 16 * i < n; ++i) {
    const int left = n - 16 * i;
    const __mmask16 lanes = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    const __m512 x = _mm512_maskz_loadu_ps(lanes, p + 16 * i);
    const __mmask16 positive = sign_zero ? _mm512_mask_cmp_ps_mask(lanes, x, zero, _CMP_GE_OQ)
                                         : _mm512_mask_cmp_ps_mask(lanes, x, zero, _CMP_GT_OQ);
    const __mmask16 negative = _mm512_cmp_ps_mask(x, zero, _CMP_LT_OQ);  // NaN is neither: it counts as 0
    bits.low |= std::uint64_t{positive} << (16 * i);
    bits.high &= ~(std::uint64_t{negative} << (16 * i));
  }
  return bits;
}

// Up to 64 inputs, `step` apart.
inline Bits load_bits(const float* p, std::int64_t step, int n, bool sign_zero) {
  if (step == 1) return load_bits(p, n, sign_zero);
  if (step == 2) {  // a strided convolution: read the neighbours too and keep every other bit
    constexpr std::uint64_t kEven = 0x5555555555555555;
    const int reach = 2 * n - 1;  // of the last one
    const Bits front = load_bits(p, reach < 64 ? reach : 64, sign_zero);
    const Bits back = reach > 64 ? load_bits(p + 64, reach - 64, sign_zero) : Bits{0, ~std::uint64_t{0}};
    return {_pext_u64(front.low, kEven) | _pext_u64(back.low, kEven) << 32,
            _pext_u64(front.high, kEven) | _pext_u64(back.high, kEven) << 32};
  }
  float gathered[64];
  for (int i = 0; i < n; ++i) gathered[i] = p[i * step];
  return load_bits(gathered, n, sign_zero);
}

// Elements [begin, begin + n) of a line, n <= 64, with its padding.
inline Bits load_line(const Line& line, std::int64_t begin, int n, bool sign_zero) {
  const std::int64_t end = begin + n, last = line.before + line.count;
  const std::int64_t first = begin > line.before ? begin : line.before;
  const std::int64_t inside = (end < last ? end : last) - first;
  if (inside <= 0) return {0, ~std::uint64_t{0}};
  const Bits bits =
      load_bits(line.x + (first - line.before) * line.step, line.step, static_cast<int>(inside), sign_zero);
  const int shift = static_cast<int>(first - begin);
  return {bits.low << shift, ~(~bits.high << shift)};
}

// Sets bit `value` in the bytes that the mask names.
inline __m512i set_bits(__m512i bytes, __mmask64 mask, int value) {
  const __m512i bit = _mm512_set1_epi8(static_cast<char>(value));
  return _mm512_mask_add_epi8(bytes, mask, bytes, bit);
}

// 32 bytes, one a pixel, as 16-bit numbers.
inline __m512i load_codes(const std::uint8_t* p) {
  return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

template <int kSlot, bool kZeros>
inline void look_up(const std::uint8_t* responses, std::uint16_t low, std::uint16_t high, std::uint8_t* out) {
  if constexpr (kSlot == 64) {
    __m512i row = _mm512_load_si512(responses + low);
    if (kZeros) row = _mm512_avg_epu8(row, _mm512_load_si512(responses + high));
    _mm512_store_si512(out, row);
  } else if constexpr (kSlot == 32) {
    __m256i row = _mm256_load_si256(reinterpret_cast<const __m256i*>(responses + low));
    if (kZeros) row = _mm256_avg_epu8(row, _mm256_load_si256(reinterpret_cast<const __m256i*>(responses + high)));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out), row);
  } else if constexpr (kSlot == 16) {
    __m128i row = _mm_load_si128(reinterpret_cast<const __m128i*>(responses + low));
    if (kZeros) row = _mm_avg_epu8(row, _mm_load_si128(reinterpret_cast<const __m128i*>(responses + high)));
    _mm_store_si128(reinterpret_cast<__m128i*>(out), row);
  } else {
    __m128i row = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(responses + low));
    if (kZeros) row = _mm_avg_epu8(row, _mm_loadl_epi64(reinterpret_cast<const __m128i*>(responses + high)));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), row);
  }
}

// A register of tables after the other, so that the stores of a pixel fill a cache line.
template <int kSlot, int kPixels>
inline void respond(const RespondTablesTask& task) {
  constexpr int kSlots = 64 / kSlot;
  const int pixels = kPixels > 0 ? kPixels : task.pixels;
  for (int first = 0; first < task.units; first += kSlots) {
    const int slots = task.units - first < kSlots ? task.units - first : kSlots;
    const std::uint16_t* low = task.low + first * task.number_stride;
    const std::uint16_t* high = task.high + first * task.number_stride;
    std::uint8_t* out = task.tables + first * kSlot;
    __mmask8 zeros = 0;
    for (int s = 0; s < slots; ++s) {
      zeros |= _mm_cmpneq_epi16_mask(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low + s * task.number_stride)),
                                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(high + s * task.number_stride)));
    }
    const auto look_up_pixels = [&](auto has_zeros, int count) {
      for (int p = 0; p < pixels; ++p) {
        for (int s = 0; s < count; ++s) {
          look_up<kSlot, decltype(has_zeros)::value>(task.responses, low[s * task.number_stride + p],
                                                     high[s * task.number_stride + p],
                                                     out + p * task.table_stride + s * kSlot);
        }
      }
    };
    if (slots < kSlots) {
      look_up_pixels(std::true_type{}, slots);
      // Empty slots add nothing.
      for (int p = 0; p < pixels; ++p) {
        for (int byte = slots * kSlot; byte < 64; ++byte) out[p * task.table_stride + byte] = 0;
      }
    } else if (zeros != 0) {
      look_up_pixels(std::true_type{}, kSlots);
    } else {
      look_up_pixels(std::false_type{}, kSlots);
    }
  }
}

template <int kSlot>
inline void respond_pixels(const RespondTablesTask& task) {
  if (task.pixels == kTablePixels) {
    respond<kSlot, kTablePixels>(task);
  } else {
    respond<kSlot, 0>(task);
  }
}

}  // namespace

// One plane a unit: the row's three taps, bits 0 to 2 for the low number and 4 to 6 for the high one.
void stage_3x3_binary_tables_avx512vbmi(const StageTask& task) {
  constexpr int kChunk = 64 - static_cast<int>(Phases::kMaxShift);
  const std::int64_t reach = task.lines[0].length - task.columns;  // of the taps that share the first line
  const int chunk = reach <= 2 ? 62 : kChunk;
  char* plane = static_cast<char*>(task.planes);
  for (std::int64_t row = 0; row < task.rows; ++row, plane += task.columns) {
    for (std::int64_t i = 0; i < task.columns; i += chunk) {
      Bits bits[3];
      for (int l = 0; l < task.line_count; ++l) {
        const Line line = line_of_row(task, l, row);
        bits[l] = load_line(line, i, line.length - i < 64 ? static_cast<int>(line.length - i) : 64, task.sign_zero);
      }
      __m512i codes = _mm512_setzero_si512();
      for (int t = 0; t < 3; ++t) {
        codes = set_bits(codes, bits[task.tap_line[t]].low >> task.tap_shift[t], 1 << t);
        codes = set_bits(codes, bits[task.tap_line[t]].high >> task.tap_shift[t], 16 << t);
      }
      _mm512_storeu_si512(plane + i, codes);
    }
  }
}

// Two planes a unit: the low numbers, then the high numbers.
void stage_8x1x1_binary_tables_avx512vbmi(const StageTask& task) {
  char* plane = static_cast<char*>(task.planes);
  for (std::int64_t row = 0; row < task.rows; ++row, plane += task.columns) {
    for (std::int64_t i = 0; i < task.columns; i += 64) {
      const int n = task.columns - i < 64 ? static_cast<int>(task.columns - i) : 64;
      __m512i low = _mm512_setzero_si512(), high = low;
      for (int c = 0; c < 8; ++c) {
        const Bits bits = load_line(line_of_row(task, c, row), i, n, task.sign_zero);
        low = set_bits(low, bits.low, 1 << c);
        high = set_bits(high, bits.high, 1 << c);
      }
      _mm512_storeu_si512(plane + i, low);
      _mm512_storeu_si512(plane + i + task.plane_stride, high);
    }
  }
}

void number_binary_tables_avx512vbmi(const NumberTask& task, Unit unit) {
  const __m128i shift = _mm_cvtsi32_si128(__builtin_ctz(static_cast<unsigned>(task.slot)));
  const __m512i bits = _mm512_set1_epi16(7);
  for (std::int64_t p = 0; p < task.pixels; p += 32) {
    const __m512i codes0 = load_codes(task.planes[0] + p), codes1 = load_codes(task.planes[1] + p);
    __m512i low = codes0, high = codes1;
    if (unit == Unit::k3x3) {
      // Row r's code has its low bits in 0..2 and its high bits in 4..6; in the numbers they are bits 3r to 3r + 2.
      const __m512i codes2 = load_codes(task.planes[2] + p);
      const auto number = [&](__m512i row0, __m512i row1, __m512i row2) {
        return _mm512_or_si512(_mm512_and_si512(row0, bits),
                               _mm512_or_si512(_mm512_slli_epi16(_mm512_and_si512(row1, bits), 3),
                                               _mm512_slli_epi16(_mm512_and_si512(row2, bits), 6)));
      };
      low = number(codes0, codes1, codes2);
      high = number(_mm512_srli_epi16(codes0, 4), _mm512_srli_epi16(codes1, 4), _mm512_srli_epi16(codes2, 4));
    }
    _mm512_storeu_si512(task.low + p, _mm512_sll_epi16(low, shift));
    _mm512_storeu_si512(task.high + p, _mm512_sll_epi16(high, shift));
  }
}

void respond_binary_tables_avx512vbmi(const RespondTablesTask& task) {
  switch (task.slot) {
    case 64:
      return respond_pixels<64>(task);
    case 32:
      return respond_pixels<32>(task);
    case 16:
      return respond_pixels<16>(task);
    default:
      return respond_pixels<8>(task);
  }
}

}  // namespace subbit
