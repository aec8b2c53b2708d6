// Units side by side: a vector has one tap of as many units as it has lanes.
//
//     product with a codeword = prefix[its first four taps] +- tap 4 +- tap 5 ...
//
// The sixteen sums of the first four taps are made once for the units and shared by all codewords, as the paper shares
// the responses of codewords. A codeword is then a list of addresses: of its prefix, and of +tap or -tap for the rest.
#pragma once

#include <cstdint>

namespace subbit {

constexpr int kPrefixTaps = 4;
constexpr int kMostTaps = 9;

// Where a codeword's summands are: prefix[first], and signed_taps[2 * i + sign] of the taps after the prefix.
struct Summands {
  std::uint8_t first;
  std::uint8_t rest[kMostTaps - kPrefixTaps];
};

struct AssignTask {
  const float* units;  // (count, taps)
  std::int64_t count;
  const Summands* codewords;
  int codeword_count;
  std::int64_t* indices;
};

namespace {  // each level has its own

template <int Lanes>
struct Vector {
  typedef float Floats __attribute__((vector_size(4 * Lanes)));
  typedef std::int32_t Ints __attribute__((vector_size(4 * Lanes)));
};

template <int Taps, int Lanes>
void assign_lanes(const AssignTask& task) {
  using Floats = typename Vector<Lanes>::Floats;
  using Ints = typename Vector<Lanes>::Ints;
  constexpr int kVectors = 2;  // whose sums do not wait for each other
  constexpr int kUnits = kVectors * Lanes;
  for (std::int64_t start = 0; start < task.count; start += kUnits) {
    const int filled = task.count - start < kUnits ? static_cast<int>(task.count - start) : kUnits;
    alignas(64) float taps[Taps][kUnits] = {};
    for (int unit = 0; unit < filled; ++unit) {
      for (int tap = 0; tap < Taps; ++tap) taps[tap][unit] = task.units[(start + unit) * Taps + tap];
    }
    Floats prefix[1 << kPrefixTaps][kVectors], signed_taps[2 * (Taps - kPrefixTaps)][kVectors];
    Floats best[kVectors];
    Ints found[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const auto tap = [&](int number) {
        Floats loaded;
        __builtin_memcpy(&loaded, &taps[number][v * Lanes], sizeof loaded);
        return loaded;
      };
      prefix[0][v] = -tap(0), prefix[1][v] = tap(0);
      for (int number = 1; number < kPrefixTaps; ++number) {
        for (int known = 0; known < 1 << number; ++known) {
          prefix[known + (1 << number)][v] = prefix[known][v] + tap(number);
          prefix[known][v] = prefix[known][v] - tap(number);
        }
      }
      for (int number = kPrefixTaps; number < Taps; ++number) {
        signed_taps[2 * (number - kPrefixTaps)][v] = -tap(number);
        signed_taps[2 * (number - kPrefixTaps) + 1][v] = tap(number);
      }
      best[v] = Floats{} - __builtin_inff();
      found[v] = Ints{};
    }
    for (int codeword = 0; codeword < task.codeword_count; ++codeword) {
      const Summands& at = task.codewords[codeword];
      for (int v = 0; v < kVectors; ++v) {
        Floats sum = prefix[at.first][v];
        for (int number = 0; number < Taps - kPrefixTaps; ++number) sum = sum + signed_taps[at.rest[number]][v];
        const Ints is_nearer = sum > best[v];
        best[v] = is_nearer ? sum : best[v];
        found[v] = is_nearer ? Ints{} + codeword : found[v];
      }
    }
    for (int unit = 0; unit < filled; ++unit) task.indices[start + unit] = found[unit / Lanes][unit % Lanes];
  }
}

}  // namespace
}  // namespace subbit
