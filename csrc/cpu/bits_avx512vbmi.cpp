// The bits layout: 64 input channels a word, matched by XOR and VPOPCNTQ against the decoded weight.
#include <immintrin.h>

#include "cpu/bits_avx512.h"
#include "cpu/finish_avx512.h"
#include "cpu/kernels.h"

namespace subbit {
namespace {

// Exchanges bit `lane` of every word for the words' own number: word i bit j goes to word j bit i. Blocks off the
// diagonal change places, 32 words apart first and neighbours last (Warren, Hacker's Delight, 7-3).
inline void transpose(std::uint64_t words[64]) {
  std::uint64_t mask = 0x00000000ffffffff;
  for (int distance = 32; distance > 0; distance /= 2, mask ^= mask << distance) {
    for (int base = 0; base < 64; base += 2 * distance) {
      for (int i = base; i < base + distance; ++i) {
        const std::uint64_t swap = (words[i] >> distance ^ words[i + distance]) & mask;
        words[i + distance] ^= swap;
        words[i] ^= swap << distance;
      }
    }
  }
}

// How many of a patch's activations are not zero.
inline int count_used(const MatchBitsTask& task, int pixel) {
  int used = 0;
  for (int t = 0; t < task.taps; ++t) {
    const std::uint64_t* x = task.pixel[pixel] + task.tap_offset[t];
    for (int w = 0; w < task.words; ++w) used += static_cast<int>(_mm_popcnt_u64(x[2 * w]));
  }
  return used;
}

// kPixels pixels times 32 outputs: counts (used and different) over all taps and words.
template <int kPixels>
inline void match(const MatchBitsTask& task, int first_pixel) {
  constexpr int kVectors = kOutputsPerMatch / 8;
  const std::int64_t block = std::int64_t{task.taps} * task.words * 8;
  for (int p = 0; p < kPixels; ++p) {
    task.used[first_pixel + p] = static_cast<float>(count_used(task, first_pixel + p));
  }
  for (std::int64_t o = 0; o < task.outputs; o += kOutputsPerMatch) {
    const std::uint64_t* weights = task.weights + o / 8 * block;
    __m512i different[kPixels][kVectors];
    for (auto& pixel : different) {
      for (auto& sum : pixel) sum = _mm512_setzero_si512();
    }
    for (int t = 0; t < task.taps; ++t) {
      const std::uint64_t* x[kPixels];
      for (int p = 0; p < kPixels; ++p) x[p] = task.pixel[first_pixel + p] + task.tap_offset[t];
      for (int w = 0; w < task.words; ++w, weights += 8) {
        __m512i weight[kVectors];
        for (int v = 0; v < kVectors; ++v) weight[v] = _mm512_load_si512(weights + v * block);
        for (int p = 0; p < kPixels; ++p) {
          const __m512i used = _mm512_set1_epi64(static_cast<long long>(x[p][2 * w]));
          const __m512i plus = _mm512_set1_epi64(static_cast<long long>(x[p][2 * w + 1]));
          for (int v = 0; v < kVectors; ++v) {
            // 0x28 is the truth table of (weight ^ plus) & used.
            const __m512i wrong = _mm512_ternarylogic_epi64(weight[v], plus, used, 0x28);
            different[p][v] = _mm512_add_epi64(different[p][v], _mm512_popcnt_epi64(wrong));
          }
        }
      }
    }
    for (int p = 0; p < kPixels; ++p) {
      for (int v = 0; v < kVectors; ++v) {
        std::uint16_t* out = task.different + (first_pixel + p) * task.outputs + o + v * 8;
        _mm_store_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi64_epi16(different[p][v]));
      }
    }
  }
}

}  // namespace

void stage_binary_bits_avx512vbmi(const StageBitsTask& task) {
  for (std::int64_t first = 0; first < task.columns; first += 64) {
    const int columns = task.columns - first < 64 ? static_cast<int>(task.columns - first) : 64;
    alignas(64) std::uint64_t plus[64] = {}, used[64] = {};  // a word a channel, then a word a column
    for (int c = 0; c < task.channels; ++c) {
      const Bits bits =
          load_bits(task.x + c * task.x_channel + first * task.x_column, task.x_column, columns, task.sign_zero);
      plus[c] = bits.low;
      used[c] = ~(bits.low ^ bits.high);  // 0 is the only digit whose bits differ
    }
    transpose(plus);
    transpose(used);
    std::uint64_t* out = task.words + first * task.word_stride;
    for (int i = 0; i < columns; ++i, out += task.word_stride) {
      out[0] = used[i];
      out[1] = plus[i];
    }
  }
}

void match_binary_bits_avx512vbmi(const MatchBitsTask& task) {
  int p = 0;
  for (; p + 4 <= task.pixels; p += 4) match<4>(task, p);
  for (; p < task.pixels; ++p) match<1>(task, p);
}

void finish_binary_bits_avx512vbmi(const FinishTask& task) { finish_by_pixel(task); }

}  // namespace subbit
