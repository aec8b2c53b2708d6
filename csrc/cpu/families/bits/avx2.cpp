// The bits family without an instruction that counts bits: the activations of four channels name a table of sixteen
// bytes, how many of them differ from each of the sixteen nibbles that a weight can have there, and vpshufb looks the
// weights of 32 outputs up in it.
//
// Two instructions, vpshufb and vpaddb, for four channels and 32 outputs: with the weights' nibbles taken apart once
// for four pixels, 38 vector instructions for 8 channels, 64 outputs and 4 pixels. Counting the bits of (weight ^ plus)
// & used by nibbles (Mula) takes nine for 64 channels and 4 outputs, 72 for the same work.
#include <immintrin.h>

#include "cpu/epilogue/finish_avx2.h"
#include "cpu/epilogue/pack_avx2.h"
#include "cpu/families/kernels.h"

namespace subbit {
namespace {

// Digits of four channels to the base of three: 0 is zero, 1 is -1, 2 is +1.
constexpr int kTables = 81;

struct Tables {
  alignas(16) std::uint8_t different[kTables][16];
};

constexpr Tables make_tables() {
  Tables tables{};
  for (int number = 0; number < kTables; ++number) {
    for (int weight = 0; weight < 16; ++weight) {
      for (int i = 0, rest = number; i < 4; ++i, rest /= 3) {
        const int digit = rest % 3;
        tables.different[number][weight] += digit != 0 && (digit == 2) != (weight >> i & 1);
      }
    }
  }
  return tables;
}

constexpr Tables kDifferent = make_tables();

// A code is twice the number of a table, so that eight times the code, which addresses can do, is where it begins.
inline __m128i table(std::uint8_t code) {
  const auto* tables = reinterpret_cast<const char*>(&kDifferent);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(tables + std::size_t{code} * 8));
}

// The compiler would add two looked up vectors first and the sum of all to them, with the sums in memory.
inline __m256i in_order(__m256i sum) {
  asm("" : "+x"(sum));
  return sum;
}

// A byte counts 4 at most for each of a half's eight codes, so that it holds seven halves: 224.
constexpr int kHalvesPerByte = 255 / (4 * 8);

// How many halves the inner loop takes at a time: whole words where there are only those.
enum class Step { kHalf = 1, kWord = 2 };

// kPixels pixels times 32 * kVectors outputs. The unrolled loops are what keeps the sums in registers.
template <int kPixels, int kVectors, Step kStep>
inline void match(const MatchBitsTask& task, int first_pixel, std::int64_t output) {
  const std::int64_t block = std::int64_t{task.taps} * task.halves * 4 * 32;
  const auto* weights = static_cast<const std::uint8_t*>(task.weights) + output / 32 * block;
  const auto* const* patch = task.codes + first_pixel;
  std::uint16_t* const out = task.different + first_pixel * task.outputs + output;
  const __m256i nibble = _mm256_set1_epi8(15), low_byte = _mm256_set1_epi16(255);
  const std::uint8_t* codes[kPixels];
  constexpr int kBytes = 4 * static_cast<int>(kStep);
  constexpr int kStepsPerByte = kHalvesPerByte / static_cast<int>(kStep);
  const int steps = task.halves / static_cast<int>(kStep);
  int tap = 0, step = 0;
  bool is_first = true;
  for (int left = task.taps * steps; left > 0;) {
    __m256i sum[kPixels][kVectors];
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[p][v] = _mm256_setzero_si256();
    }
    const int end = left > kStepsPerByte ? left - kStepsPerByte : 0;
    for (; left > end; --left) {
      if (step == 0) {
        for (int p = 0; p < kPixels; ++p) codes[p] = patch[p] + task.tap_offset[tap] * 16;
      }
#pragma GCC unroll 8
      for (int byte = 0; byte < kBytes; ++byte) {
        const auto load = [&](int v) {
          return _mm256_load_si256(reinterpret_cast<const __m256i*>(weights + v * block + 32 * byte));
        };
        __m256i weight[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) weight[v] = _mm256_and_si256(load(v), nibble);
#pragma GCC unroll 4
        for (int p = 0; p < kPixels; ++p) {
          const __m256i different = _mm256_broadcastsi128_si256(table(codes[p][2 * byte]));
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            sum[p][v] = in_order(_mm256_add_epi8(sum[p][v], _mm256_shuffle_epi8(different, weight[v])));
          }
        }
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) weight[v] = _mm256_and_si256(_mm256_srli_epi16(load(v), 4), nibble);
#pragma GCC unroll 4
        for (int p = 0; p < kPixels; ++p) {
          const __m256i different = _mm256_broadcastsi128_si256(table(codes[p][2 * byte + 1]));
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            sum[p][v] = in_order(_mm256_add_epi8(sum[p][v], _mm256_shuffle_epi8(different, weight[v])));
          }
        }
      }
      weights += kBytes * 32;
      for (int p = 0; p < kPixels; ++p) codes[p] += 2 * kBytes;
      if (++step == steps) {
        step = 0;
        ++tap;
      }
    }
    // Even bytes are outputs 0 to 15, odd ones 16 to 31 (families/bits/family.cpp).
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        auto* sums = reinterpret_cast<__m256i*>(out + p * task.outputs + 32 * v);
        __m256i low = _mm256_and_si256(sum[p][v], low_byte), high = _mm256_srli_epi16(sum[p][v], 8);
        if (!is_first) {
          low = _mm256_add_epi16(low, _mm256_load_si256(sums));
          high = _mm256_add_epi16(high, _mm256_load_si256(sums + 1));
        }
        _mm256_store_si256(sums, low);
        _mm256_store_si256(sums + 1, high);
      }
    }
    is_first = false;
  }
}

// How many activations of each patch are not zero; all pixels in one loop.
template <int kPixels>
inline void count_used(const MatchBitsTask& task, int first_pixel) {
  std::int64_t used[kPixels] = {};
  for (int t = 0; t < task.taps; ++t) {
    const std::int64_t first = task.tap_offset[t];
    for (std::int64_t i = first; i < first + task.words; ++i) {
#pragma GCC unroll 4
      for (int p = 0; p < kPixels; ++p) used[p] += _mm_popcnt_u64(task.used[first_pixel + p][i]);
    }
  }
  for (int p = 0; p < kPixels; ++p) task.used_count[first_pixel + p] = static_cast<float>(used[p]);
}

template <int kPixels, Step kStep>
inline void match(const MatchBitsTask& task, int first_pixel) {
  count_used<kPixels>(task, first_pixel);
  std::int64_t o = 0;
  for (; o + 64 <= task.outputs; o += 64) match<kPixels, 2, kStep>(task, first_pixel, o);
  if (o < task.outputs) match<kPixels, 1, kStep>(task, first_pixel, o);
}

template <Step kStep>
inline void match(const MatchBitsTask& task) {
  if (task.pixels == 4) return match<4, kStep>(task, 0);
  for (int p = 0; p < task.pixels; ++p) match<1, kStep>(task, p);
}

}  // namespace

// The number to the base of three whose digits are used + plus, nibble by nibble.
void code_binary_bits_avx2(const CodeBitsTask& task) {
  const __m128i nibble = _mm_set1_epi8(15);
  const __m128i twice_number = _mm_setr_epi8(0, 2, 6, 8, 18, 20, 24, 26, 54, 56, 60, 62, 72, 74, 78, 80);
  for (std::int64_t i = 0; i < task.words; ++i) {
    const __m128i both =
        _mm_set_epi64x(static_cast<long long>(task.plus[i] & task.used[i]), static_cast<long long>(task.used[i]));
    const __m128i low = _mm_shuffle_epi8(twice_number, _mm_and_si128(both, nibble));
    const __m128i high = _mm_shuffle_epi8(twice_number, _mm_and_si128(_mm_srli_epi16(both, 4), nibble));
    const __m128i codes = _mm_add_epi8(_mm_unpacklo_epi8(low, high), _mm_unpackhi_epi8(low, high));
    _mm_store_si128(reinterpret_cast<__m128i*>(task.codes) + i, codes);
  }
}

void match_binary_bits_avx2(const MatchBitsTask& task) {
  if (task.halves % 2 == 0) {
    match<Step::kWord>(task);
  } else {
    match<Step::kHalf>(task);
  }
}

void finish_binary_bits_avx2(const FinishTask& task) { finish_by_pixel(task); }
void pack_binary_bits_avx2(const PackTask& task) { pack(task); }

}  // namespace subbit
