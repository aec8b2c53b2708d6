// Stage 1 of the tables layout for binary activations: patches become numbers, numbers look up responses.
//
// A tap is -1, 0 (padding, or an exact zero) or +1, and only +-1 fits a bit. So every patch gets two
// numbers: in `low` zeros count as -1, in `high` as +1. The response is linear in each tap, hence
//
//     response(patch) = (response(low) + response(high)) / 2
//
// exactly, for both have the same parity. The table is biased to be unsigned (R + taps), which makes the
// halved sum one vpavgb; and most patches hold no zero, so low = high and one look-up is enough.
#include <immintrin.h>

#include "cpu/kernels.h"

namespace subbit {
namespace {

// A byte a tap: bit 0 is its bit in the low number, bit 4 its bit in the high number.
constexpr char kPlus = 0x11, kZero = 0x10;

// Bytes for up to 64 inputs; lanes from n on are unspecified.
inline __m512i load_taps(const float* p, int n, bool sign_zero) {
  __mmask64 low = 0, high = 0;
  for (int i = 0; i < 4; ++i) {
    const int left = n - 16 * i;
    if (left <= 0) break;
    const __mmask16 lanes = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    const __m512 x = _mm512_maskz_loadu_ps(lanes, p + 16 * i);
    const __mmask16 positive = sign_zero ? _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ)
                                         : _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    const __mmask16 not_negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NLT_UQ);  // NaN: 0
    low |= static_cast<__mmask64>(positive) << (16 * i);
    high |= static_cast<__mmask64>(not_negative) << (16 * i);
  }
  return _mm512_or_si512(_mm512_maskz_set1_epi8(low, kPlus ^ kZero), _mm512_maskz_set1_epi8(high, kZero));
}

inline void load_line(const Line& line, bool sign_zero, char* out) {
  const __m512i zeros = _mm512_set1_epi8(kZero);
  char* end = out + line.length;
  for (std::int64_t i = 0; i < line.before; i += 64) _mm512_storeu_si512(out + i, zeros);
  out += line.before;
  for (std::int64_t i = 0; i < line.count; i += 64) {
    const int n = line.count - i < 64 ? static_cast<int>(line.count - i) : 64;
    if (line.step == 1) {
      _mm512_storeu_si512(out + i, load_taps(line.x + i, n, sign_zero));
    } else {
      float gathered[64];
      for (int j = 0; j < n; ++j) gathered[j] = line.x[(i + j) * line.step];
      _mm512_storeu_si512(out + i, load_taps(gathered, n, sign_zero));
    }
  }
  for (out += line.count; out < end; out += 64) _mm512_storeu_si512(out, zeros);
}

inline const char* load_lines(const StageTask& task) {
  char* scratch = static_cast<char*>(task.scratch);
  for (int l = 0; l < task.line_count; ++l) load_line(task.lines[l], task.sign_zero, scratch + l * task.scratch_stride);
  return scratch;
}

inline __m512i double_bytes(__m512i x) { return _mm512_add_epi8(x, x); }

// The response row of each pixel's patch, for pixels whose numbers are in low[] and high[].
template <int kSlot>
inline void look_up(const std::uint8_t* responses, const std::uint16_t* low, const std::uint16_t* high, bool same,
                    int pixels, std::uint8_t* out, std::int64_t stride) {
  for (int p = 0; p < pixels; ++p, out += stride) {
    const std::uint8_t* a = responses + low[p] * kSlot;
    const std::uint8_t* b = responses + high[p] * kSlot;
    if constexpr (kSlot == 64) {
      __m512i row = _mm512_load_si512(a);
      if (!same) row = _mm512_avg_epu8(row, _mm512_load_si512(b));
      _mm512_store_si512(out, row);
    } else if constexpr (kSlot == 32) {
      __m256i row = _mm256_load_si256(reinterpret_cast<const __m256i*>(a));
      if (!same) row = _mm256_avg_epu8(row, _mm256_load_si256(reinterpret_cast<const __m256i*>(b)));
      _mm256_store_si256(reinterpret_cast<__m256i*>(out), row);
    } else if constexpr (kSlot == 16) {
      __m128i row = _mm_load_si128(reinterpret_cast<const __m128i*>(a));
      if (!same) row = _mm_avg_epu8(row, _mm_load_si128(reinterpret_cast<const __m128i*>(b)));
      _mm_store_si128(reinterpret_cast<__m128i*>(out), row);
    } else {
      __m128i row = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(a));
      if (!same) row = _mm_avg_epu8(row, _mm_loadl_epi64(reinterpret_cast<const __m128i*>(b)));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(out), row);
    }
  }
}

// Eight bytes, one a pixel, as 16-bit numbers. Reads eight whatever the tile's width: planes have slack.
inline __m128i load_codes(const std::uint8_t* p) {
  return _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

template <Unit kUnit, int kSlot>
inline void respond(const RespondTablesTask& task) {
  for (int u = 0; u < task.units; ++u) {
    const std::int64_t offset = u * task.unit_stride;
    __m128i low, high;
    if constexpr (kUnit == Unit::k3x3) {
      // Row r's code has its low bits in 0..2 and its high bits in 4..6; in the numbers they are bits 3r to 3r + 2.
      const __m128i bits = _mm_set1_epi16(7);
      const __m128i row0 = load_codes(task.planes[0] + offset);
      const __m128i row1 = load_codes(task.planes[1] + offset);
      const __m128i row2 = load_codes(task.planes[2] + offset);
      const auto number = [&](__m128i r0, __m128i r1, __m128i r2) {
        return _mm_or_si128(_mm_and_si128(r0, bits), _mm_or_si128(_mm_slli_epi16(_mm_and_si128(r1, bits), 3),
                                                                  _mm_slli_epi16(_mm_and_si128(r2, bits), 6)));
      };
      low = number(row0, row1, row2);
      high = number(_mm_srli_epi16(row0, 4), _mm_srli_epi16(row1, 4), _mm_srli_epi16(row2, 4));
    } else {
      low = load_codes(task.planes[0] + offset);
      high = load_codes(task.planes[1] + offset);
    }
    alignas(16) std::uint16_t lows[8], highs[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(lows), low);
    _mm_store_si128(reinterpret_cast<__m128i*>(highs), high);
    const bool same = _mm_cmpneq_epi16_mask(low, high) == 0;
    std::uint8_t* out = task.tables + u * kSlot;
    if (same && task.pixels == kTablePixels) {
      look_up<kSlot>(task.responses, lows, highs, true, kTablePixels, out, task.table_stride);
    } else {
      look_up<kSlot>(task.responses, lows, highs, same, task.pixels, out, task.table_stride);
    }
  }
  // Empty slots of the last register add nothing.
  for (int p = 0; p < task.pixels; ++p) {
    for (int byte = task.units * kSlot; byte % 64 != 0; ++byte) task.tables[p * task.table_stride + byte] = 0;
  }
}

template <Unit kUnit>
inline void respond_slot(const RespondTablesTask& task) {
  switch (task.slot) {
    case 64:
      return respond<kUnit, 64>(task);
    case 32:
      return respond<kUnit, 32>(task);
    case 16:
      return respond<kUnit, 16>(task);
    default:
      return respond<kUnit, 8>(task);
  }
}

}  // namespace

// One plane a unit: the code of the row's three taps, in both numbers.
void stage_3x3_binary_tables_avx512vbmi(const StageTask& task) {
  const char* lines = load_lines(task);
  const char* tap[3];
  for (int t = 0; t < 3; ++t) tap[t] = lines + task.tap_line[t] * task.scratch_stride + task.tap_shift[t];
  char* plane = static_cast<char*>(task.planes);
  for (std::int64_t i = 0; i < task.columns; i += 64) {
    const __m512i x0 = _mm512_loadu_si512(tap[0] + i);
    const __m512i x1 = _mm512_loadu_si512(tap[1] + i);
    const __m512i x2 = _mm512_loadu_si512(tap[2] + i);
    _mm512_storeu_si512(plane + i, _mm512_add_epi8(x0, double_bytes(_mm512_add_epi8(x1, double_bytes(x2)))));
  }
}

// Two planes a unit: the low numbers, then the high numbers.
void stage_8x1x1_binary_tables_avx512vbmi(const StageTask& task) {
  const char* lines = load_lines(task);
  char* plane = static_cast<char*>(task.planes);
  const __m512i one = _mm512_set1_epi8(1);
  for (std::int64_t i = 0; i < task.columns; i += 64) {
    __m512i low = _mm512_setzero_si512(), high = low;
    for (int c = 7; c >= 0; --c) {
      const __m512i x = _mm512_loadu_si512(lines + c * task.scratch_stride + i);
      low = _mm512_or_si512(double_bytes(low), _mm512_and_si512(x, one));
      high = _mm512_or_si512(double_bytes(high), _mm512_and_si512(_mm512_srli_epi16(x, 4), one));
    }
    _mm512_storeu_si512(plane + i, low);
    _mm512_storeu_si512(plane + i + task.plane_stride, high);
  }
}

void respond_binary_tables_avx512vbmi(const RespondTablesTask& task, Unit unit) {
  if (unit == Unit::k3x3) {
    respond_slot<Unit::k3x3>(task);
  } else {
    respond_slot<Unit::k8x1x1>(task);
  }
}

}  // namespace subbit
