// The weight as the product reads it: its signs, one bit each, in the order in which a warp's lanes want them.
//
// A decoded copy and not the indices: 32 weights of one output are then one load and two instructions for every pair
// of them, where the indices would take an extraction of tau bits, a look-up in shared memory and a transposition of
// the nine taps for each channel, in every block of pixels again. It takes 9 bits for tau: 0.3 MiB for 512 x 512
// channels, which the second-level cache holds. Saved and shipped are the indices alone; this is made from them, by the
// device, once for each weight.
//
// K, the numbers of one output, goes tap by tap and inside a tap by channel. A *step* is what two products of matrices
// take: 64 bytes of a pixel, 32 halves of one tap or 512 bits, four pieces of 16 bytes, the t-th of which is lane t's
// (t = lane % 4) slot of both products (mma.cuh). Padding bits mean nothing: they meet zeros of x.
//
//   halves   [group][32 outputs][step][lane] words: bit 16 e + 4 h + 2 s + r of lane (g, t) is of output 8 h + g and
//            channel 8 t + 4 s + 2 r + e of the step: number e of register r in product s of the h-th eight outputs.
//            1 is -1 here, so that `word << i & 0x80008000 | 0x3c003c00` is a register of two halves of +-1.
//   bits     [group][8 outputs][step][lane][4] words: word i of lane (g, t) is word 4 t + i of output g's step, a
//            channel a bit, 1 being +1; words 0 and 1 are of the first product. Then [output][taps + 1] counts of +1
//            as int32, all taps' last.
#pragma once

#include <cstdint>

#include "cuda/pack.cuh"
#include "cuda/params.h"
#include "cuda/platform.h"
#include "cuda/start.cuh"

namespace subbit {

constexpr int kStepBytes = 64;
constexpr int kStepHalves = 32;       // channels of a step of halves
constexpr int kStepWords = 8;         // 64-bit words of a step of bits
constexpr int kHalvesOutputs = 32;    // outputs whose signs of halves are one block
constexpr int kFragmentOutputs = 8;   // outputs of one product of matrices
constexpr int kWarpLanes = 32;

struct ProductWeightShape {
  std::int64_t groups, group_outputs, group_channels;
  int taps;
  bool is_bits;
  std::int64_t tap_slots;  // pieces of 16 bytes (halves) or words of 64 bits (bits) of a tap, padding included
  std::int64_t steps;
  std::int64_t blocks;       // of outputs, of a group
  std::int64_t block_words;  // 32-bit words of a block of outputs
};

inline ProductWeightShape product_weight_shape(const CudaParams& params) {
  const ConvParams& conv = params.conv;
  ProductWeightShape s{};
  s.groups = conv.groups;
  s.group_outputs = params.group_outputs();
  s.group_channels = conv.in_channels / conv.groups;
  s.taps = kernel_taps(conv.unit);
  s.is_bits = conv.activations == Activations::kBinary;
  if (s.is_bits) {
    s.tap_slots = ceil_div(s.group_channels, kWordChannels);
    s.steps = ceil_div(s.taps * s.tap_slots, kStepWords);
    s.blocks = ceil_div(s.group_outputs, kFragmentOutputs);
    s.block_words = s.steps * kWarpLanes * 4;
  } else {
    s.tap_slots = ceil_div(s.group_channels, kStepHalves) * 4;
    s.steps = s.taps * s.tap_slots / 4;
    s.blocks = ceil_div(s.group_outputs, kHalvesOutputs);
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

struct ProductWeightArgs {
  ProductWeightShape shape;
  std::int64_t sign_words, counts;
  const std::uint32_t* indices;
  const Codeword* codebook;
  std::int64_t index_row_words;
  int tau, unit_channels;
  std::uint32_t* words;  // the signs, and behind them the counts
};

// Whether a weight is +1. The output counts all groups', the channel its group's.
SUBBIT_DEVICE bool weight_is_plus(const ProductWeightArgs& a, std::int64_t output, std::int64_t channel, int tap) {
  const std::uint32_t* row = a.indices + output * a.index_row_words;
  const std::int64_t unit = channel / a.unit_channels, bit = unit * a.tau, word = bit / 32;
  const int shift = static_cast<int>(bit % 32);
  std::uint32_t index = row[word] >> shift;
  if (shift + a.tau > 32) index |= row[word + 1] << (32 - shift);
  index &= (1u << a.tau) - 1;
  const int of_codeword = a.unit_channels == 1 ? tap : static_cast<int>(channel % a.unit_channels);
  return (a.codebook[index] >> of_codeword & 1) != 0;
}

SUBBIT_DEVICE std::uint32_t word_of_halves(const ProductWeightArgs& a, std::int64_t group, std::int64_t block,
                                           std::int64_t step, int lane) {
  const ProductWeightShape& s = a.shape;
  const std::int64_t tap_steps = s.tap_slots / 4, first = step % tap_steps * kStepHalves;
  const int tap = static_cast<int>(step / tap_steps);
  std::uint32_t word = 0;
  for (int bit = 0; bit < 32; ++bit) {
    const int e = bit / 16, h = bit / 4 % 4, in_slot = bit % 4;  // in_slot = 2 s + r
    const std::int64_t output = block * kHalvesOutputs + h * kFragmentOutputs + lane / 4;
    const std::int64_t channel = first + lane % 4 * 8 + in_slot * 2 + e;
    if (output >= s.group_outputs || channel >= s.group_channels) continue;
    word |= std::uint32_t{!weight_is_plus(a, group * s.group_outputs + output, channel, tap)} << bit;
  }
  return word;
}

SUBBIT_DEVICE std::uint32_t word_of_bits(const ProductWeightArgs& a, std::int64_t group, std::int64_t block,
                                         std::int64_t step, int lane, int i) {
  const ProductWeightShape& s = a.shape;
  const std::int64_t output = block * kFragmentOutputs + lane / 4;
  const std::int64_t half = step * kStepWords * 2 + lane % 4 * 4 + i, tap = half / 2 / s.tap_slots;
  const std::int64_t first = half / 2 % s.tap_slots * kWordChannels + half % 2 * 32;
  if (output >= s.group_outputs || tap >= s.taps) return 0;
  std::uint32_t word = 0;
  for (int bit = 0; bit < 32 && first + bit < s.group_channels; ++bit) {
    const bool plus = weight_is_plus(a, group * s.group_outputs + output, first + bit, static_cast<int>(tap));
    word |= std::uint32_t{plus} << bit;
  }
  return word;
}

SUBBIT_DEVICE std::uint32_t count_of_plus(const ProductWeightArgs& a, std::int64_t output, int tap) {
  const int first = tap == a.shape.taps ? 0 : tap, end = tap == a.shape.taps ? tap : tap + 1;
  std::uint32_t count = 0;
  for (int t = first; t < end; ++t) {
    for (std::int64_t c = 0; c < a.shape.group_channels; ++c) count += weight_is_plus(a, output, c, t);
  }
  return count;
}

// A thread makes a word.
struct PrepareProductWeight {
  static constexpr int kThreads = 256, kBlocksPerMultiprocessor = 4;

  static SUBBIT_DEVICE void run(const ProductWeightArgs& a) {
    const ProductWeightShape& s = a.shape;
    for (std::int64_t i = thread_of_grid(); i < a.sign_words + a.counts; i += threads_of_grid()) {
      if (i >= a.sign_words) {
        const std::int64_t count = i - a.sign_words;
        a.words[i] = count_of_plus(a, count / (s.taps + 1), static_cast<int>(count % (s.taps + 1)));
        continue;
      }
      const std::int64_t block = i / s.block_words, group = block / s.blocks, in_block = i % s.block_words;
      const int words = s.is_bits ? 4 : 1, lane = static_cast<int>(in_block / words % kWarpLanes);
      const std::int64_t step = in_block / words / kWarpLanes;
      a.words[i] = s.is_bits
                       ? word_of_bits(a, group, block % s.blocks, step, lane, static_cast<int>(in_block % words))
                       : word_of_halves(a, group, block % s.blocks, step, lane);
    }
  }
};

inline Status start_prepare(const CudaParams& params, const std::uint32_t* indices, const Codeword* codebook,
                            void* weight, Stream stream) {
  ProductWeightArgs args{};
  args.shape = product_weight_shape(params);
  args.sign_words = product_sign_words(args.shape);
  args.counts = product_counts(args.shape);
  args.indices = indices;
  args.codebook = codebook;
  args.tau = tau_for(params.codewords);
  args.index_row_words = index_row_words(params.units(), args.tau);
  args.unit_channels = unit_channels(params.conv.unit);
  args.words = static_cast<std::uint32_t*>(weight);
  const std::int64_t items = args.sign_words + args.counts;
  if (items == 0) return kStarted;
  return start<PrepareProductWeight>(blocks_for(items, PrepareProductWeight::kThreads), 0, args, stream);
}

}  // namespace subbit
