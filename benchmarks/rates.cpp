// What the machine can do at best: the rates, in 10^9 instructions a second on one thread, that bound the kernels.
//
//     g++ -std=c++17 -O3 -march=native -o /tmp/rates benchmarks/rates.cpp && taskset -c 0 /tmp/rates
//
// -march=native is for this program alone: it measures the machine it is compiled on. Where the compiler's machine has
// no AVX-512 VBMI, or no AVX2 and FMA, those lines are left out. An instruction with a memory operand counts once.
//
// load-add     float add with one operand from memory: what gathering float32 responses is made of
// fma          what a dense float32 convolution is made of
// store        aligned: what writing responses is made of
// vpermb+add   byte look-up of 64 indices and byte add, counted as one: gathering binary responses from registers.
//              The table comes from memory, from another address each time, so that no look-up can be hoisted
// vpermi2ps    look-up in a table of 32 floats in two registers, with its add, counted as one
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstring>

namespace {

constexpr int kChains = 8;  // independent accumulators: covers a latency of 4 at two a cycle
constexpr int kIterations = 100000;
constexpr int kRepeats = 20;
constexpr std::size_t kFootprints[] = {std::size_t{16} << 10, std::size_t{256} << 10};  // within L1, within L2
constexpr std::size_t kTables = std::size_t{16} << 10;

alignas(4096) char buffer[std::size_t{256} << 10];

// Makes the compiler believe that a register is read and changed here: nothing is hoisted, merged or dropped.
template <class V>
inline void touch(V& value) {
  asm volatile("" : "+v"(value));
}

// The best rate of V = step(V, address), in kChains chains that walk through `footprint` bytes, a power of two.
template <class V, class Step>
double rate(std::size_t footprint, Step step) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    V v0 = {}, v1 = {}, v2 = {}, v3 = {}, v4 = {}, v5 = {}, v6 = {}, v7 = {};  // an array would live in memory
    std::size_t offset = 0;
    const auto start = Clock::now();
    for (int i = 0; i < kIterations; ++i) {
      char* p = buffer + offset;
      v0 = step(v0, p), v1 = step(v1, p + sizeof(V)), v2 = step(v2, p + 2 * sizeof(V)),
      v3 = step(v3, p + 3 * sizeof(V));
      p += 4 * sizeof(V);
      v4 = step(v4, p), v5 = step(v5, p + sizeof(V)), v6 = step(v6, p + 2 * sizeof(V)),
      v7 = step(v7, p + 3 * sizeof(V));
      touch(v0), touch(v1), touch(v2), touch(v3), touch(v4), touch(v5), touch(v6), touch(v7);
      offset = (offset + kChains * sizeof(V)) & (footprint - 1);
    }
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return double{kIterations} * kChains / best / 1e9;
}

[[maybe_unused]] void print(const char* what, std::size_t footprint, double found) {
  std::printf("%-18s %3zu KB  %6.2f G/s\n", what, footprint >> 10, found);
}

#if defined(__AVX2__) && defined(__FMA__)
float* floats(char* p) { return reinterpret_cast<float*>(p); }

void measure_ymm() {
  for (const std::size_t footprint : kFootprints) {
    print("ymm load-add", footprint,
          rate<__m256>(footprint, [](__m256 sum, char* p) { return _mm256_add_ps(sum, _mm256_load_ps(floats(p))); }));
    print("ymm store", footprint, rate<__m256>(footprint, [](__m256 value, char* p) {
            _mm256_store_ps(floats(p), value);
            return value;
          }));
  }
  __m256 one = _mm256_set1_ps(1);
  touch(one);
  print("ymm fma", 0, rate<__m256>(kTables, [=](__m256 sum, char*) { return _mm256_fmadd_ps(sum, one, one); }));
}
#else
void measure_ymm() {}
#endif

#if defined(__AVX512VBMI__)
void measure_zmm() {
  for (const std::size_t footprint : kFootprints) {
    print("zmm load-add", footprint,
          rate<__m512>(footprint, [](__m512 sum, char* p) { return _mm512_add_ps(sum, _mm512_load_ps(p)); }));
    print("zmm store", footprint, rate<__m512>(footprint, [](__m512 value, char* p) {
            _mm512_store_ps(p, value);
            return value;
          }));
  }
  __m512 one = _mm512_set1_ps(1);
  __m512i indices = _mm512_set1_epi32(3);
  touch(one), touch(indices);
  print("zmm fma", 0, rate<__m512>(kTables, [=](__m512 sum, char*) { return _mm512_fmadd_ps(sum, one, one); }));
  print("zmm vpermb+add", kTables, rate<__m512i>(kTables, [=](__m512i sum, char* p) {
          return _mm512_add_epi8(sum, _mm512_permutexvar_epi8(indices, _mm512_load_si512(p)));
        }));
  print("zmm vpermi2ps+add", kTables, rate<__m512>(kTables, [=](__m512 sum, char* p) {
          return _mm512_add_ps(sum, _mm512_permutex2var_ps(_mm512_load_ps(p), indices, one));
        }));
}
#else
void measure_zmm() {}
#endif

}  // namespace

int main() {
  std::memset(buffer, 0, sizeof(buffer));
  measure_ymm();
  measure_zmm();
  return 0;
}
