// Stage 1 of the tables layout for binary activations: a patch is three numbers (RespondTablesTask), each of which
// looks up its share of the response to all codewords.
#include <immintrin.h>

#include "core/phases.h"
#include "cpu/bits_avx512.h"
#include "cpu/kernels.h"

namespace subbit {
namespace {

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

// Adds the digits of one tap, times `weight`, to the codes.
inline __m512i add_digits(__m512i codes, Bits tap, int weight) {
  const __m512i digit = _mm512_set1_epi8(static_cast<char>(weight));
  codes = _mm512_mask_add_epi8(codes, tap.low, codes, digit);
  return _mm512_mask_add_epi8(codes, tap.high, codes, digit);
}

constexpr int kPowers[kTapsOfCode] = {1, 3, 9};

// The codes of one unit.
struct UnitCodes {
  const std::uint8_t* part[kCodeParts];
};

// The tables of kBytes / kSlot neighbouring units for pixel p, side by side.
template <int kSlot, int kBytes>
inline auto tables(const std::uint8_t* responses, const UnitCodes* units, int p) {
  if constexpr (kBytes > kSlot) {
    const auto low = tables<kSlot, kBytes / 2>(responses, units, p);
    const auto high = tables<kSlot, kBytes / 2>(responses, units + kBytes / 2 / kSlot, p);
    if constexpr (kBytes == 64) {
      return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    } else if constexpr (kBytes == 32) {
      return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    } else {
      return _mm_unpacklo_epi64(low, high);
    }
  } else {
    const std::uint8_t* row[kCodeParts];
    for (int i = 0; i < kCodeParts; ++i) row[i] = responses + i * kCodes * kSlot + 8 * units->part[i][p];
    if constexpr (kSlot == 64) {
      const auto load = [](const std::uint8_t* r) { return _mm512_load_si512(r); };
      return _mm512_add_epi8(_mm512_add_epi8(load(row[0]), load(row[1])), load(row[2]));
    } else if constexpr (kSlot == 32) {
      const auto load = [](const std::uint8_t* r) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(r)); };
      return _mm256_add_epi8(_mm256_add_epi8(load(row[0]), load(row[1])), load(row[2]));
    } else if constexpr (kSlot == 16) {
      const auto load = [](const std::uint8_t* r) { return _mm_load_si128(reinterpret_cast<const __m128i*>(r)); };
      return _mm_add_epi8(_mm_add_epi8(load(row[0]), load(row[1])), load(row[2]));
    } else {
      const auto load = [](const std::uint8_t* r) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(r)); };
      return _mm_add_epi8(_mm_add_epi8(load(row[0]), load(row[1])), load(row[2]));
    }
  }
}

// A register of tables is one store. (The task is copied because the stores of bytes could, for all the compiler
// knows, change it.)
template <int kSlot, int kPixels>
inline void respond(const RespondTablesTask task) {
  constexpr int kSlots = 64 / kSlot;
  const int pixels = kPixels > 0 ? kPixels : task.pixels;
  std::uint8_t* out = task.tables;
  for (int first = 0; first < task.units; first += kSlots, out += 64) {
    const int slots = task.units - first < kSlots ? task.units - first : kSlots;
    const __mmask64 filled = ~std::uint64_t{0} >> (64 - slots * kSlot);  // empty slots add nothing
    UnitCodes units[kSlots];
    for (int s = 0; s < kSlots; ++s) {
      const std::int64_t unit = first + (s < slots ? s : 0);
      for (int i = 0; i < kCodeParts; ++i) units[s].part[i] = task.codes[i] + unit * task.unit_stride;
    }
    for (int p = 0; p < pixels; ++p) {
      const __m512i table = tables<kSlot, 64>(task.responses, units, p);
      _mm512_store_si512(out + p * task.table_stride, _mm512_maskz_mov_epi8(filled, table));
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

// One plane a unit: the codes of a row of taps.
void stage_3x3_binary_tables_avx512vbmi(const StageTask& task) {
  const int chunk = 64 - static_cast<int>(Phases::kMaxShift);
  std::int64_t shift = 0;
  for (std::int64_t s : task.tap_shift) shift = s > shift ? s : shift;
  const int columns = shift <= 2 ? 62 : chunk;  // that 64 bits of every line are enough for
  char* plane = static_cast<char*>(task.planes);
  for (std::int64_t row = 0; row < task.rows; ++row, plane += task.columns) {
    for (std::int64_t i = 0; i < task.columns; i += columns) {
      Bits bits[3];
      for (int l = 0; l < task.line_count; ++l) {
        const Line line = line_of_row(task, l, row);
        bits[l] = load_line(line, i, line.length - i < 64 ? static_cast<int>(line.length - i) : 64, task.sign_zero);
      }
      __m512i codes = _mm512_setzero_si512();
      for (int t = 0; t < 3; ++t) {
        const Bits& line = bits[task.tap_line[t]];
        const Bits tap{line.low >> task.tap_shift[t], line.high >> task.tap_shift[t]};
        codes = add_digits(codes, tap, kPowers[t] * task.code_unit);
      }
      _mm512_storeu_si512(plane + i, codes);
    }
  }
}

// Three planes a unit: the codes of channels 0 1 2, 3 4 5 and 6 7.
void stage_8x1x1_binary_tables_avx512vbmi(const StageTask& task) {
  char* plane = static_cast<char*>(task.planes);
  for (std::int64_t row = 0; row < task.rows; ++row, plane += task.columns) {
    for (std::int64_t i = 0; i < task.columns; i += 64) {
      const int n = task.columns - i < 64 ? static_cast<int>(task.columns - i) : 64;
      __m512i codes[kCodeParts] = {};
      for (int c = 0; c < 8; ++c) {
        __m512i& part = codes[c / kTapsOfCode];
        const Bits tap = load_line(line_of_row(task, c, row), i, n, task.sign_zero);
        part = add_digits(part, tap, kPowers[c % kTapsOfCode] * task.code_unit);
      }
      for (int p = 0; p < kCodeParts; ++p) _mm512_storeu_si512(plane + i + p * task.plane_stride, codes[p]);
    }
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
