// Makes the weight that the product reads (weight.h) of packed indices, once for each weight.
#pragma once

#include <cstdint>

#include "cuda/common/packed_index.cuh"
#include "cuda/common/params.h"
#include "cuda/common/platform.h"
#include "cuda/common/start.cuh"
#include "cuda/product/weight.h"

namespace subbit {

struct ProductWeightArgs {
  ProductWeightShape shape;
  std::int64_t sign_words, counts;
  PackedIndices indices;
  const Codeword* codebook;
  int unit_channels;
  std::uint32_t* words;  // the signs, and after them the counts
};

// Whether a weight is +1. The output counts all groups', the channel its group's.
SUBBIT_DEVICE bool weight_is_plus(const ProductWeightArgs& a, std::int64_t output, std::int64_t channel, int tap) {
  const std::uint32_t index = a.indices.at(output, a.unit_channels == 1 ? channel : channel / 8);
  const int of_codeword = a.unit_channels == 1 ? tap : static_cast<int>(channel % 8);
  return (a.codebook[index] >> of_codeword & 1) != 0;
}

template <int kNumberBytes>
SUBBIT_DEVICE std::uint32_t word_of_numbers(const ProductWeightArgs& a, std::int64_t group, std::int64_t block,
                                            std::uint32_t step, int lane) {
  const ProductWeightShape& s = a.shape;
  const std::uint32_t tap_steps = static_cast<std::uint32_t>(s.tap_slots) / 4;
  const std::int64_t first = std::int64_t{step % tap_steps} * (kStepBytes / kNumberBytes);
  const int tap = static_cast<int>(step / tap_steps);
  std::uint32_t word = 0;
  for (int bit = 0; bit < 32; ++bit) {
    const int e = bit / (8 * kNumberBytes), h = bit / 8 % kNumberBytes, product = bit / 4 % 2, r = bit % 4;
    const std::int64_t output = block * signs_outputs(kNumberBytes) + h * kFragmentOutputs + r % 2 * 8 + lane / 4;
    const std::int64_t channel = first + (lane % 4 * kPieceBytes + product * 8 + r / 2 * 4) / kNumberBytes + e;
    if (output >= s.group_outputs || channel >= s.group_channels) continue;
    word |= std::uint32_t{!weight_is_plus(a, group * s.group_outputs + output, channel, tap)} << bit;
  }
  return word;
}

SUBBIT_DEVICE std::uint32_t word_of_bits(const ProductWeightArgs& a, std::int64_t group, std::int64_t block,
                                         std::uint32_t step, int product, int lane, int r) {
  const ProductWeightShape& s = a.shape;
  const std::int64_t output = block * kFragmentOutputs + r % 2 * 8 + lane / 4;
  const std::uint32_t half = step * kStepWords * 2 + lane % 4 * 4 + product * 2 + r / 2;
  const std::uint32_t tap_slots = static_cast<std::uint32_t>(s.tap_slots), tap = half / 2 / tap_slots;
  const std::int64_t first = std::int64_t{half / 2 - tap * tap_slots} * kWordChannels + half % 2 * 32;
  if (output >= s.group_outputs || tap >= static_cast<std::uint32_t>(s.taps)) return 0;
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
    const auto signs = static_cast<std::uint32_t>(a.sign_words), all = signs + static_cast<std::uint32_t>(a.counts);
    const auto block_words = static_cast<std::uint32_t>(s.block_words), blocks = static_cast<std::uint32_t>(s.blocks);
    for (std::uint32_t i = thread_of_grid(); i < all; i += threads_of_grid()) {
      if (i >= signs) {
        const std::uint32_t count = i - signs, counts = static_cast<std::uint32_t>(s.taps) + 1;
        a.words[i] = count_of_plus(a, count / counts, static_cast<int>(count % counts));
        continue;
      }
      const std::uint32_t row = i / block_words, in_block = i - row * block_words;
      const std::uint32_t group = row / blocks, block = row - group * blocks;
      if (s.is_bits) {
        const int r = static_cast<int>(in_block % 4), lane = static_cast<int>(in_block / 4 % kWarpLanes);
        const std::uint32_t product = in_block / 4 / kWarpLanes;
        a.words[i] = word_of_bits(a, group, block, product / 2, static_cast<int>(product % 2), lane, r);
      } else {
        const int lane = static_cast<int>(in_block % kWarpLanes);
        const std::uint32_t step = in_block / kWarpLanes;
        a.words[i] = s.number_bytes == 1 ? word_of_numbers<1>(a, group, block, step, lane)
                                         : word_of_numbers<2>(a, group, block, step, lane);
      }
    }
  }
};

inline Status start_prepare(const CudaParams& params, const std::uint32_t* indices, const Codeword* codebook,
                            void* weight, Stream stream) {
  ProductWeightArgs args{};
  args.shape = product_weight_shape(params);
  args.sign_words = product_sign_words(args.shape);
  args.counts = product_counts(args.shape);
  const int tau = tau_for(params.codewords);
  args.indices = {indices, index_row_words(params.units(), tau), tau};
  args.codebook = codebook;
  args.unit_channels = unit_channels(params.conv.unit);
  args.words = static_cast<std::uint32_t*>(weight);
  const std::int64_t items = args.sign_words + args.counts;
  if (items == 0) return kStarted;
  return start<PrepareProductWeight>(blocks_for(items, PrepareProductWeight::kThreads), 0, args, stream);
}

}  // namespace subbit
