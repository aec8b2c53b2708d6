// How the taps of a strided, dilated kernel find their inputs along one axis.
//
// Tap t of output position o reads input position o * stride + t * dilation (before padding is taken
// off). Inputs with equal remainder mod stride form a *phase*: inside a phase, o counts in steps of one,
// so a tap is a phase and a shift:
//
//     t * dilation = residue + shift * stride        input(o, t) = phase[residue][o + shift]
//
//     stride 1, dilation 1:  one phase,  shifts 0 1 2        a b c d e f g ...
//     stride 2, dilation 1:  two phases, taps 0 and 2 share  a c e g ... | b d f ...
#pragma once

#include <cstdint>

namespace subbit {

struct Phases {
  static constexpr int kMaxTaps = 3;
  int count = 0;
  std::int64_t residue[kMaxTaps] = {};    // of a phase
  std::int64_t max_shift[kMaxTaps] = {};  // of the taps in a phase
  int phase_of_tap[kMaxTaps] = {};
  std::int64_t shift_of_tap[kMaxTaps] = {};
};

inline Phases phases(int taps, std::int64_t stride, std::int64_t dilation) {
  Phases p;
  for (int t = 0; t < taps; ++t) {
    const std::int64_t residue = t * dilation % stride;
    const std::int64_t shift = t * dilation / stride;
    int phase = 0;
    while (phase < p.count && p.residue[phase] != residue) ++phase;
    if (phase == p.count) p.residue[p.count++] = residue;
    p.phase_of_tap[t] = phase;
    p.shift_of_tap[t] = shift;
    if (shift > p.max_shift[phase]) p.max_shift[phase] = shift;
  }
  return p;
}

}  // namespace subbit
