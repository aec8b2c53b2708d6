// What the product's kernel (kernel.cuh) is compiled for: the tiles of blocks, and the kinds of x.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/common/mma.cuh"
#include "cuda/common/platform.h"
#include "cuda/product/weight.h"

namespace subbit {

// A block's tile: kWarpsM x kWarpsN warps of 16 kM outputs x 8 kN pixels, kWarpsK times over for parts of K; kSteps
// steps a stage, kStages stages in shared memory.
template <int kM_, int kN_, int kWarpsM_, int kWarpsN_, int kWarpsK_, int kSteps_, int kStages_>
struct ProductTile {
  static constexpr int kM = kM_, kN = kN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kWarpsK = kWarpsK_;
  static constexpr int kSteps = kSteps_, kStages = kStages_;
  static constexpr int kOutputs = kFragmentOutputs * kM * kWarpsM, kPixels = kFragmentPixels * kN * kWarpsN;
  static constexpr int kThreads = kWarpLanes * kWarpsM * kWarpsN * kWarpsK;
  static_assert(kSteps % kWarpsK == 0 && kM % 2 == 0 && kN % 2 == 0);
};

// Numbers: x is kParts 16-bit floats of type T that are added up, in the order low, middle, high; or one int8, summed
// in int32, where binary activations are -1, 0 and +1 and padding is 0, exact without anything else.
template <class T, int kParts>
struct NumbersKind {
  using Number = T;
  static constexpr int kNumberBytes = sizeof(T);
  using Sum = std::conditional_t<kNumberBytes == 1, std::int32_t, float>;
  static constexpr bool kIsBits = false;
  static constexpr int kPlanes = kParts, kPieceBytes = 16;
  static constexpr int kSignsM = kNumberBytes;  // sixteens of outputs whose signs are in one word
  static constexpr std::uint32_t kOnes =        // a register of +1
      kNumberBytes == 1                ? 0x01010101u
      : std::is_same<T, __half>::value ? 0x3c003c00u
                                       : 0x3f803f80u;

  // A register of +-1 of a word of signs, for the bit of its first number (weight.h).
  static SUBBIT_DEVICE std::uint32_t ones(std::uint32_t signs, int bit) {
    if constexpr (kNumberBytes == 1) {
      return (signs >> bit & 0x01010101u) * 0xfeu + kOnes;
    } else {
      return with_signs(kOnes, signs << (15 - bit));
    }
  }

  // One part is one chain of additions in the tensor core. Three are added up stage by stage: the small parts first,
  // into a sum of their own that begins at 0, which is then added, rounded to nearest. So the tensor core's roundings,
  // of at most one unit in the last place (2^-23) and perhaps always towards 0, are of partial sums of a stage. With
  // S = sum |x| over K in all, n stages of k numbers: those of the high parts lose at most k 2^-23 of their stage's
  // |x|; those of the middle (and low) parts 2^-7 as much; the additions of stages n 2^-24 S. In all
  //     |error| <= (1.02 (k + 1) 2^-23 + n 2^-24) S,
  // for 512 channels (k = 64, n = 72) 207 x 2^-24 S, where a float32 sum in a row is allowed 4607 x 2^-24 S.
  static constexpr bool kSumsStages = kParts > 1;
};

// Bits: the planes are plus and, unless no activation is zero, nonzero.
template <int kPlanes_>
struct BitsKind {
  using Sum = std::int32_t;
  static constexpr bool kIsBits = true;
  static constexpr int kPlanes = kPlanes_, kPieceBytes = 8;
  static constexpr int kSignsM = 1;  // not used: signs go through shared memory
  static constexpr bool kSumsStages = false;
};

}  // namespace subbit
