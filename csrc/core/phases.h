// How the taps of a strided, dilated kernel find their inputs along one axis.
//
// Tap t of output position o reads input position o * stride + t * dilation (before padding is taken
// off). Every stride-th input, from a first one on, is a *phase*: inside it, o counts in steps of one, so a
// tap is a phase and a shift:
//
//     t * dilation = first + shift * stride              input(o, t) = phase[o + shift]
//
//     stride 1, dilation 1:  one phase,  shifts 0 1 2        a b c d e f g ...
//     stride 2, dilation 1:  two phases, taps 0 and 2 share  a c e g ... | b d f ...
#pragma once

#include <cstdint>

namespace subbit {

struct Phases {
  static constexpr int kMaxTaps = 3;
  static constexpr std::int64_t kMaxShift = 32;  // taps farther apart get phases of their own
  int count = 0;
  std::int64_t first[kMaxTaps] = {};
  std::int64_t max_shift[kMaxTaps] = {};  // of the taps in a phase
  int phase_of_tap[kMaxTaps] = {};
  std::int64_t shift_of_tap[kMaxTaps] = {};
};

// Neighbouring input positions that `outputs` neighbouring outputs read, gaps between taps included.
constexpr std::int64_t positions_read(std::int64_t outputs, int taps, std::int64_t stride, std::int64_t dilation) {
  return (outputs - 1) * stride + (taps - 1) * dilation + 1;
}

inline Phases phases(int taps, std::int64_t stride, std::int64_t dilation) {
  Phases p;
  for (int t = 0; t < taps; ++t) {
    const std::int64_t at = t * dilation;
    const auto shift_in = [&](int phase) { return (at - p.first[phase]) / stride; };
    int phase = 0;
    while (phase < p.count && ((at - p.first[phase]) % stride != 0 || shift_in(phase) > Phases::kMaxShift)) ++phase;
    if (phase == p.count) p.first[p.count++] = at;
    p.phase_of_tap[t] = phase;
    p.shift_of_tap[t] = shift_in(phase);
    if (p.shift_of_tap[t] > p.max_shift[phase]) p.max_shift[phase] = p.shift_of_tap[t];
  }
  return p;
}

}  // namespace subbit
