// The weight as the product reads it: its signs, one bit each, in the order in which a warp's lanes want them.
//
// A decoded copy and not the indices: 32 weights of one output are then one load and two instructions for every pair
// of them, where the indices would take an extraction of tau bits, a look-up in shared memory and a transposition of
// the nine taps for each channel, in every block of pixels again. It takes 9 bits for tau: 0.3 MiB for 512 x 512
// channels, which the second-level cache holds. Saved and shipped are the indices alone; this is made from them, by the
// device, once for each weight.
//
// What is multiplied are bits, or *numbers* of B bytes: float16 or bfloat16 (B = 2), or int8 (B = 1) for binary
// activations on devices without products of bits.
//
// K, the numbers of one output, goes tap by tap and inside a tap by channel. A *step* is what two products of matrices
// take: 64 bytes of a pixel, 64 / B numbers of one tap or 512 bits, four pieces of 16 bytes, the t-th of which is lane
// t's (t = lane % 4) slot of both products (mma.cuh). Padding bits mean nothing: they meet zeros of x.
//
// The weight is the left matrix of the products, so a fragment has 16 outputs, g and g + 8 in each lane.
//
//   numbers  [group][16 B outputs][step][lane] words: bit 8 B e + 8 h + 4 s + r of lane (g, t) is of number e of the
//            4 / B of register r in product s of the h-th sixteen outputs: output 16 h + 8 (r % 2) + g and channel
//            (16 t + 8 s + 4 (r / 2)) / B + e of the step. 1 is -1 here, so that a register of +-1 is made of a word by
//            one shift: float16 is `word << i & 0x80008000 | 0x3c003c00`, int8 (word >> i & 0x01010101) * 0xfe +
//            0x01010101, where each byte's 1 or 0 becomes 0xff or 0x01 and none carries into the next.
//   bits     [group][16 outputs][step][product][lane][4] words: register r of lane (g, t) in product s is word 4 t +
//            2 s + r / 2 of the step of output 8 (r % 2) + g, one bit per channel, 1 being +1. Then [output][taps + 1]
//            counts of +1 as int32, all taps' last.
#pragma once

#include <cstdint>

#include "cuda/common/params.h"

namespace subbit {

constexpr int kStepBytes = 64;
constexpr int kPieceBytes = 16;
constexpr int kStepWords = 8;         // 64-bit words of a step of bits
constexpr int kFragmentOutputs = 16;  // outputs of one product of matrices
constexpr int kFragmentPixels = 8;
constexpr int kWarpLanes = 32;

// Outputs whose signs are one block, where numbers are multiplied.
constexpr int signs_outputs(int number_bytes) { return kFragmentOutputs * number_bytes; }

constexpr bool is_binary(const CudaParams& params) { return params.conv.activations == Activations::kBinary; }
constexpr bool multiplies_bits(const CudaParams& params) {
  return is_binary(params) && has_bit_products(params.capability);
}
// Of a number, where bits are not what is multiplied.
constexpr int number_bytes(const CudaParams& params) { return is_binary(params) ? 1 : 2; }

struct ProductWeightShape {
  std::int64_t groups, group_outputs, group_channels;
  int taps;
  bool is_bits;
  int number_bytes;        // of numbers
  std::int64_t tap_slots;  // pieces of 16 bytes (numbers) or words of 64 bits (bits) of a tap, padding included
  std::int64_t steps;
  std::int64_t blocks;       // of outputs, of a group
  std::int64_t block_words;  // 32-bit words of a block of outputs
};

inline ProductWeightShape product_weight_shape(const CudaParams& params) {
  const ConvProblem& conv = params.conv;
  ProductWeightShape s{};
  s.groups = conv.groups;
  s.group_outputs = params.group_outputs();
  s.group_channels = conv.in_channels / conv.groups;
  s.taps = kernel_taps(conv.unit);
  s.is_bits = multiplies_bits(params);
  s.number_bytes = number_bytes(params);
  if (s.is_bits) {
    s.tap_slots = ceil_div(s.group_channels, kWordChannels);
    s.steps = ceil_div(s.taps * s.tap_slots, kStepWords);
    s.blocks = ceil_div(s.group_outputs, kFragmentOutputs);
    s.block_words = s.steps * kWarpLanes * 8;
  } else {
    s.tap_slots = ceil_div(s.group_channels * s.number_bytes, kStepBytes) * (kStepBytes / kPieceBytes);
    s.steps = s.taps * s.tap_slots / (kStepBytes / kPieceBytes);
    s.blocks = ceil_div(s.group_outputs, signs_outputs(s.number_bytes));
    s.block_words = s.steps * kWarpLanes;
  }
  return s;
}

constexpr std::int64_t product_sign_words(const ProductWeightShape& s) { return s.groups * s.blocks * s.block_words; }
constexpr std::int64_t product_counts(const ProductWeightShape& s) {
  return s.is_bits ? s.groups * s.group_outputs * (s.taps + 1) : 0;
}

inline std::int64_t prepared_bytes(const CudaParams& params) {
  const ProductWeightShape s = product_weight_shape(params);
  const std::int64_t counts = checked_product({product_counts(s), 4}, "prepared weight");
  return checked_product({s.groups, s.blocks, s.block_words, 4}, "prepared weight") + counts;
}

}  // namespace subbit
