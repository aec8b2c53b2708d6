// The patches family: binary activations as bits, nine bits as the number of a patch, and vpermb to look up what 64
// output channels make of it.
#include <immintrin.h>

#include "cpu/epilogue/finish_avx512.h"
#include "cpu/epilogue/pack_avx512vbmi.h"
#include "cpu/families/kernels.h"
#include "cpu/simd/bits_avx512vbmi.h"

namespace subbit {
namespace {

constexpr int kWordBits = 64;

// Puts the low n bits, the others being 0, at bit `at` of words that are 0 there.
inline void put_bits(std::uint64_t* words, std::int64_t at, std::uint64_t bits, int n) {
  const int shift = static_cast<int>(at % kWordBits);
  words[at / kWordBits] |= bits << shift;
  if (shift + n > kWordBits) words[at / kWordBits + 1] |= bits >> (kWordBits - shift);
}

// The 64 bits from bit `at` on, which may be as low as -64.
inline std::uint64_t get_bits(const std::uint64_t* words, std::int64_t at) {
  const std::uint64_t* word = words + (at >> 6);
  const int shift = static_cast<int>(at & 63);
  return shift == 0 ? *word : word[0] >> shift | word[1] << (kWordBits - shift);
}

// `count` inputs, to bit `at` on. Returns whether there is a 0 among them.
inline bool stage_run(const StagePatchesTask& task, const float* x, std::int64_t count, std::int64_t at) {
  std::uint64_t zeros = 0;
  for (std::int64_t i = 0; i < count; i += kWordBits) {
    const int n = count - i < kWordBits ? static_cast<int>(count - i) : kWordBits;
    const Bits bits = load_bits(x + i * task.input.step, task.input.step, n, task.input.sign_zero);
    const std::uint64_t positive = bits.high & (~std::uint64_t{0} >> (kWordBits - n));
    put_bits(task.plus, at + i, bits.low, n);
    put_bits(task.positive, at + i, positive, n);
    zeros |= bits.low ^ positive;
  }
  return zeros != 0;
}

// A response is at most nine, so a byte holds the sum of 28 units (252).
constexpr int kUnitsPerByteSum = 28;

// Adds bytes to the 16-bit sums of the same 64 channels. Even bytes are channels 0..31 and odd bytes 32..63 (the order
// is put into the positions), so no byte has to change lanes.
inline void widen(__m512i bytes, bool add, std::uint16_t* sums) {
  __m512i even = _mm512_and_si512(bytes, _mm512_set1_epi16(0xff));
  __m512i odd = _mm512_srli_epi16(bytes, 8);
  if (add) {
    even = _mm512_add_epi16(even, _mm512_load_si512(sums));
    odd = _mm512_add_epi16(odd, _mm512_load_si512(sums + 32));
  }
  _mm512_store_si512(sums, even);
  _mm512_store_si512(sums + 32, odd);
}

// A row of responses in the low bytes of a register; positions are below kSlot, so what is above is never looked up.
template <int kSlot>
inline __m512i load_responses(const std::uint8_t* row) {
  if constexpr (kSlot == 64) {
    return _mm512_load_si512(row);
  } else if constexpr (kSlot == 32) {
    return _mm512_castsi256_si512(_mm256_load_si256(reinterpret_cast<const __m256i*>(row)));
  } else if constexpr (kSlot == 16) {
    return _mm512_castsi128_si512(_mm_load_si128(reinterpret_cast<const __m128i*>(row)));
  } else {
    return _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row)));
  }
}

// kPixels pixels times kVectors * 64 outputs: their byte sums stay in registers over kUnitsPerByteSum units.
template <int kSlot, int kPixels, int kVectors>
inline void look_up(const LookUpTask& task, int first_pixel, std::int64_t first_output) {
  const std::int64_t vector_stride = task.units * 64;
  const std::uint8_t* positions = task.positions + first_output / 64 * vector_stride;
  const std::uint16_t* codes = task.codes + first_pixel;
  std::uint16_t* sums = task.sums + first_pixel * task.outputs + first_output;
  for (std::int64_t begin = 0; begin < task.units; begin += kUnitsPerByteSum) {
    const std::int64_t end = begin + kUnitsPerByteSum < task.units ? begin + kUnitsPerByteSum : task.units;
    __m512i acc[kPixels][kVectors];
    for (auto& pixel : acc) {
      for (auto& sum : pixel) sum = _mm512_setzero_si512();
    }
    for (std::int64_t u = begin; u < end; ++u) {
      __m512i position[kVectors];
      for (int v = 0; v < kVectors; ++v) position[v] = _mm512_load_si512(positions + v * vector_stride + u * 64);
      std::uint64_t four = 0;
      for (int p = 0; p < kPixels; ++p, four >>= 16) {
        if (p % 4 == 0) __builtin_memcpy(&four, codes + u * kCodePixels + p, kPixels < 4 ? 2 * kPixels : 8);
        const __m512i row = load_responses<kSlot>(task.responses + 8 * (four & 0xffff));
        for (int v = 0; v < kVectors; ++v) {
          acc[p][v] = _mm512_add_epi8(acc[p][v], _mm512_permutexvar_epi8(position[v], row));
        }
      }
    }
    for (int p = 0; p < kPixels; ++p) {
      for (int v = 0; v < kVectors; ++v) widen(acc[p][v], task.add || begin > 0, sums + p * task.outputs + v * 64);
    }
  }
}

template <int kSlot, int kPixels>
inline void look_up_outputs(const LookUpTask& task, int first_pixel) {
  std::int64_t o = 0;
  for (; o + 256 <= task.outputs; o += 256) look_up<kSlot, kPixels, 4>(task, first_pixel, o);
  for (; o + 128 <= task.outputs; o += 128) look_up<kSlot, kPixels, 2>(task, first_pixel, o);
  if (o < task.outputs) look_up<kSlot, kPixels, 1>(task, first_pixel, o);
}

// Few outputs leave registers for more pixels.
template <int kSlot>
inline void look_up_pixels(const LookUpTask& task) {
  int p = 0;
  if (task.pixels == kCodePixels && task.outputs < 256) {
    std::int64_t o = 0;
    for (; o + 128 <= task.outputs; o += 128) look_up<kSlot, kCodePixels, 2>(task, 0, o);
    if (o < task.outputs) look_up<kSlot, kCodePixels, 1>(task, 0, o);
    return;
  }
  for (; p + 4 <= task.pixels; p += 4) look_up_outputs<kSlot, 4>(task, p);
  for (; p < task.pixels; ++p) look_up_outputs<kSlot, 1>(task, p);
}

// What the first eight taps see, a word of 64 pixels per tap. Where they are, and how far into a word, is the same for
// all units.
class Taps {
 public:
  explicit Taps(const std::int64_t* tap_bit) {
    const __m512i at = _mm512_loadu_si512(tap_bit);
    word_ = _mm512_srai_epi64(at, 6);
    shift_ = _mm512_and_si512(at, _mm512_set1_epi64(63));
    rest_ = _mm512_sub_epi64(_mm512_set1_epi64(64), shift_);
  }
  __m512i load(const std::uint64_t* plane) const {
    const __m512i low = _mm512_i64gather_epi64(word_, plane, 8), high = _mm512_i64gather_epi64(word_, plane + 1, 8);
    return _mm512_or_si512(_mm512_srlv_epi64(low, shift_), _mm512_sllv_epi64(high, rest_));
  }

 private:
  __m512i word_, shift_, rest_;
};

// The same where the three taps of each kernel row follow each other bit by bit, as they do without stride: one
// load per row, which begins less than eight bits before its first tap, serves all three.
class TapsOfRows {
 public:
  static bool fit(const std::int64_t* tap_bit, int taps) {
    bool consecutive = taps == 9;
    for (int t = 1; t < taps; ++t) consecutive = consecutive && (t % 3 == 0 || tap_bit[t] == tap_bit[t - 1] + 1);
    return consecutive;
  }
  explicit TapsOfRows(const std::int64_t* tap_bit) {
    alignas(64) std::int64_t shift[8];
    for (int r = 0; r < 3; ++r) byte_[r] = tap_bit[3 * r] >> 3;
    for (int t = 0; t < 8; ++t) shift[t] = tap_bit[t] - 8 * byte_[t / 3];
    shift_ = _mm512_load_si512(shift);
    rest_ = _mm512_sub_epi64(_mm512_set1_epi64(64), shift_);
  }
  __m512i load(const std::uint64_t* plane) const {
    const auto rows = [&](std::int64_t offset) {
      const auto word = [&](int r) {
        long long value;
        __builtin_memcpy(&value, reinterpret_cast<const char*>(plane) + byte_[r] + offset, sizeof(value));
        return value;
      };
      const __m512i first = _mm512_set1_epi64(word(0));  // lanes 0 1 2; then 3 4 5 and 6 7
      return _mm512_mask_set1_epi64(_mm512_mask_set1_epi64(first, 0x38, word(1)), 0xc0, word(2));
    };
    return _mm512_or_si512(_mm512_srlv_epi64(rows(0), shift_), _mm512_sllv_epi64(rows(8), rest_));
  }

 private:
  std::int64_t byte_[3];
  __m512i shift_, rest_;
};

// Eight taps of 64 pixels are eight words, a bit per pixel, and codes are a byte per pixel, a bit per tap: a
// transposition of 8 x 64 bits. (The task is copied because the stores of codes could, for all the compiler knows,
// change it.)
template <class Taps>
inline void code_patches(const CodePatchesTask task) {
  const Taps taps(task.tap_bit);
  const __m512i inside = _mm512_loadu_si512(task.inside);
  const __m512i outside = _mm512_andnot_si512(inside, _mm512_set1_epi64(static_cast<long long>(task.outside)));
  const __m512i first[2] = {_mm512_loadu_si512(task.first), _mm512_loadu_si512(task.first + 32)};
  const __m512i ninth_bit = _mm512_set1_epi16(256);
  const __m128i code_shift = _mm_cvtsi32_si128(task.code_shift);
  const bool has_ninth = task.taps == 9;
  const std::int64_t ninth_at = has_ninth ? task.tap_bit[8] : 0;
  const std::uint64_t ninth_inside = has_ninth ? task.inside[8] : 0;
  const std::uint64_t ninth_outside = has_ninth ? task.outside & ~ninth_inside : 0;
  for (std::int64_t u = 0; u < task.units; ++u) {
    const std::uint64_t* plane = task.plane + u * task.unit_stride;
    const __m512i bits = _mm512_or_si512(_mm512_and_si512(taps.load(plane), inside), outside);
    const __m512i bytes = transpose_8x64(bits);
    const std::uint64_t ninth = (get_bits(plane, ninth_at) & ninth_inside) | ninth_outside;
    std::uint16_t* out = task.codes + u * kCodePixels;
    for (int half = 0; half < 2; ++half) {
      const __m256i half_bytes = half == 0 ? _mm512_castsi512_si256(bytes) : _mm512_extracti64x4_epi64(bytes, 1);
      const auto ninths = static_cast<__mmask32>(ninth >> (32 * half));
      __m512i codes = _mm512_cvtepu8_epi16(half_bytes);
      codes = _mm512_mask_add_epi16(codes, ninths, codes, ninth_bit);
      codes = _mm512_add_epi16(_mm512_sll_epi16(codes, code_shift), first[half]);
      const __m128i blocks[4] = {_mm512_castsi512_si128(codes), _mm512_extracti32x4_epi32(codes, 1),
                                 _mm512_extracti32x4_epi32(codes, 2), _mm512_extracti32x4_epi32(codes, 3)};
      for (int i = 0; i < 4; ++i) {
        _mm_store_si128(reinterpret_cast<__m128i*>(out + (4 * half + i) * task.block_stride), blocks[i]);
      }
    }
  }
}

}  // namespace

bool stage_binary_patches_avx512vbmi(const StagePatchesTask& task) {
  const StageTask& input = task.input;
  const std::int64_t words = (input.rows * input.columns + kWordBits - 1) / kWordBits;
  for (std::int64_t w = 0; w < words; ++w) task.plus[w] = task.positive[w] = 0;
  const bool gapless = input.step == 1 && input.count == input.columns && input.row_step == input.columns;
  if (gapless) {
    return stage_run(task, input.x, (input.inside_end - input.inside_begin) * input.columns,
                     input.inside_begin * input.columns);
  }
  bool zeros = false;
  for (std::int64_t row = input.inside_begin; row < input.inside_end; ++row) {
    zeros |= stage_run(task, input.x + (row - input.inside_begin) * input.row_step, input.count,
                       row * input.columns + input.before);
  }
  return zeros;
}

bool stage_packed_binary_patches_avx512vbmi(const StagePackedTask& task) {
  const StageTask& input = task.input;
  const std::int64_t words = (input.rows * input.columns + kWordBits - 1) / kWordBits;
  for (int c = 0; c < task.channels; ++c) {
    std::uint64_t* plus = task.plus + c * task.channel_stride;
    std::uint64_t* positive = task.positive + c * task.channel_stride;
    for (std::int64_t w = 0; w < words; ++w) plus[w] = positive[w] = 0;
  }
  std::uint64_t zeros = 0;
  // Rows without gaps between them are one run.
  const bool gapless = input.count == input.columns && input.row_step == input.columns * input.step;
  const std::int64_t rows = gapless ? 1 : input.inside_end - input.inside_begin;
  const std::int64_t count = gapless ? (input.inside_end - input.inside_begin) * input.columns : input.count;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < count; i += kWordBits) {
      const int n = count - i < kWordBits ? static_cast<int>(count - i) : kWordBits;
      const std::int64_t from = row * input.row_step + i * input.step;
      const std::int64_t to = (input.inside_begin + row) * input.columns + input.before + i;
      alignas(64) std::uint64_t plus[64] = {}, positive[64] = {};
      for (int p = 0; p < n; ++p) {
        plus[p] = task.words[from + p * input.step];
        positive[p] = task.nonzero ? plus[p] | ~task.nonzero[from + p * input.step] : plus[p];
      }
      transpose(plus);
      if (task.nonzero) transpose(positive);
      for (int c = 0; c < task.channels; ++c) {
        const std::uint64_t high = task.nonzero ? positive[c] & (~std::uint64_t{0} >> (kWordBits - n)) : plus[c];
        put_bits(task.plus + c * task.channel_stride, to, plus[c], n);
        put_bits(task.positive + c * task.channel_stride, to, high, n);
        zeros |= plus[c] ^ high;
      }
    }
  }
  return zeros != 0;
}

void code_binary_patches_avx512vbmi(const CodePatchesTask& task) {
  if (TapsOfRows::fit(task.tap_bit, task.taps)) {
    code_patches<TapsOfRows>(task);
  } else {
    code_patches<Taps>(task);
  }
}

void look_up_binary_patches_avx512vbmi(const LookUpTask& task) {
  switch (task.slot) {
    case 64:
      return look_up_pixels<64>(task);
    case 32:
      return look_up_pixels<32>(task);
    case 16:
      return look_up_pixels<16>(task);
    default:
      return look_up_pixels<8>(task);
  }
}

void finish_binary_patches_avx512vbmi(const FinishTask& task) { finish_by_pixel(task); }
void pack_binary_patches_avx512vbmi(const PackTask& task) { pack(task); }

}  // namespace subbit
