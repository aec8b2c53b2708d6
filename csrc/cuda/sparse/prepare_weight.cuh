// Makes the weight that the sparse route reads (weight.h) of packed indices, once for each weight.
#pragma once

#include <cstdint>

#include "cuda/common/packed_index.cuh"
#include "cuda/common/params.h"
#include "cuda/common/platform.h"
#include "cuda/common/start.cuh"
#include "cuda/sparse/weight.h"

namespace subbit {

struct SparseWeightArgs {
  SparseWeightShape shape;
  PackedIndices indices;
  uint2* words;
  std::uint32_t items;
};

// Bits 0 and 1: which of the two kept numbers of a group is 1, if any; bit 2: the last two of the group are kept.
SUBBIT_DEVICE std::uint32_t sparse_group(const SparseWeightArgs& a, std::int64_t group, std::int64_t output,
                                         std::int64_t step, int group_of_step) {
  const SparseWeightShape& s = a.shape;
  const int channel_groups = s.slots / 4;
  const std::int64_t channel = step * (kSparseDepth / s.slots) + group_of_step / channel_groups;
  if (output >= s.group_outputs || channel >= s.group_channels) return 0;
  const std::uint32_t index = a.indices.at(group * s.group_outputs + output, channel);
  if (index / 4 != static_cast<std::uint32_t>(group_of_step % channel_groups)) return 0;
  return (1u << index % 2) | (index % 4 / 2) << 2;
}

// A thread makes a lane's two words.
struct PrepareSparseWeight {
  static constexpr int kThreads = 256, kBlocksPerMultiprocessor = 4;

  static SUBBIT_DEVICE void run(const SparseWeightArgs& a) {
    const auto quads = static_cast<std::uint32_t>(a.shape.quads), blocks = static_cast<std::uint32_t>(a.shape.blocks);
    for (std::uint32_t i = thread_of_grid(); i < a.items; i += threads_of_grid()) {
      const int lane = static_cast<int>(i % kWarpLanes), g = lane / 4, t = lane % 4;
      const std::uint32_t row = i / kWarpLanes, block_row = row / quads, group = block_row / blocks;
      const std::int64_t step = std::int64_t{row - block_row * quads} * kSparseSteps;
      const std::int64_t output = std::int64_t{block_row - group * blocks} * kFragmentOutputs + g;
      std::uint32_t ones = 0, pairs = 0;
      for (int bit = 0; bit < 16; ++bit) {
        const int s = bit / 4, r = bit % 4;
        const std::uint32_t kept = sparse_group(a, group, output + r % 2 * 8, step + s, t + r / 2 * 4);
        ones |= (kept & 1) << bit | (kept >> 1 & 1) << (16 + bit);
        const int h = bit / 8, n = bit % 8;
        const std::uint32_t named = sparse_group(a, group, output + n / 4 * 8, step + 2 * h + t / 2, n % 4 + t % 2 * 4);
        pairs |= (named >> 2) << (4 * n + h);
      }
      a.words[i] = make_uint2(ones, pairs);
    }
  }
};

inline Status start_prepare_sparse(const CudaParams& params, const std::uint32_t* indices, void* weight,
                                   Stream stream) {
  SparseWeightArgs args{};
  args.shape = sparse_weight_shape(params);
  args.indices = {indices, index_row_words(params.units(), args.shape.tau), args.shape.tau};
  args.words = static_cast<uint2*>(weight);
  const std::int64_t items = sparse_weight_items(args.shape);
  args.items = static_cast<std::uint32_t>(items);
  if (items == 0) return kStarted;
  return start<PrepareSparseWeight>(blocks_for(items, PrepareSparseWeight::kThreads), 0, args, stream);
}

}  // namespace subbit
