// The bits family: 64 input channels per word, matched by XOR and VPOPCNTQ against the decoded weight.
#include <immintrin.h>

#include "cpu/epilogue/finish_avx512.h"
#include "cpu/epilogue/pack_avx512vbmi.h"
#include "cpu/families/kernels.h"
#include "cpu/simd/bits_avx512vbmi.h"

namespace subbit {
namespace {

// How many of a patch's activations are not zero.
inline int count_used(const MatchBitsTask& task, int pixel) {
  int used = 0;
  for (int t = 0; t < task.taps; ++t) {
    const std::uint64_t* x = task.used[pixel] + task.tap_offset[t];
    for (int w = 0; w < task.words; ++w) used += static_cast<int>(_mm_popcnt_u64(x[w]));
  }
  return used;
}

// kPixels pixels times 32 outputs: counts (used and different) over all taps and words.
template <int kPixels>
inline void match(const MatchBitsTask& task, int first_pixel) {
  constexpr int kVectors = kOutputsPerMatch / 8;
  const std::int64_t block = std::int64_t{task.taps} * task.words * 8;
  for (int p = 0; p < kPixels; ++p) {
    task.used_count[first_pixel + p] = static_cast<float>(count_used(task, first_pixel + p));
  }
  for (std::int64_t o = 0; o < task.outputs; o += kOutputsPerMatch) {
    const std::uint64_t* weights = static_cast<const std::uint64_t*>(task.weights) + o / 8 * block;
    __m512i different[kPixels][kVectors];
    for (auto& pixel : different) {
      for (auto& sum : pixel) sum = _mm512_setzero_si512();
    }
    for (int t = 0; t < task.taps; ++t) {
      const std::uint64_t* x[kPixels];
      for (int p = 0; p < kPixels; ++p) x[p] = task.used[first_pixel + p] + task.tap_offset[t];
      for (int w = 0; w < task.words; ++w, weights += 8) {
        __m512i weight[kVectors];
        for (int v = 0; v < kVectors; ++v) weight[v] = _mm512_load_si512(weights + v * block);
        for (int p = 0; p < kPixels; ++p) {
          const __m512i used = _mm512_set1_epi64(static_cast<long long>(x[p][w]));
          const __m512i plus = _mm512_set1_epi64(static_cast<long long>(x[p][task.plus + w]));
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

void match_binary_bits_avx512vbmi(const MatchBitsTask& task) {
  int p = 0;
  for (; p + 4 <= task.pixels; p += 4) match<4>(task, p);
  for (; p < task.pixels; ++p) match<1>(task, p);
}

void finish_binary_bits_avx512vbmi(const FinishTask& task) { finish_by_pixel(task); }
void pack_binary_bits_avx512vbmi(const PackTask& task) { pack(task); }

}  // namespace subbit
