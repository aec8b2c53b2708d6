// The weight as the sparse route (kernel.cuh) reads it: which codeword each output takes of each channel, in the order
// in which the lanes of a sparse product want it (mma_sparse.cuh).
//
// K, the numbers of one output, goes by channel and inside a channel by codeword: 4 codewords per channel, one group of
// four, or 8, two groups. A codebook that has fewer is filled up with codewords that no index names. A *step* is what
// one product takes: 32 numbers, 8 or 4 channels. Of a group that has the index, its low bit says which of the two kept
// numbers is 1, its high bit whether the kept ones are the first two or the last two; of one that has not, both are 0.
//
//   [group][16 outputs][four steps][lane] two words. Lane (g, t):
//     ones    bit 16 e + 8 (s / 2) + 4 (s % 2) + r: number e of register r in step s is 1. So for the bits b = 0 to 7
//     of
//             either pair of steps `(ones & 0x00010001 << b) * (0x3c00 >> b)` is a register of two float16 of 0 or 1.
//     pairs   bit 4 n + h: group n % 4 + 4 (t % 2) of output g + 8 (n / 4) in step 2 h + t / 2 keeps its last two. So
//             `(pairs >> h & 0x11111111) * 10 + 0x44444444` are the metadata of steps 2 h and 2 h + 1 for the selectors
//             0 and 1, a nibble 0x4 (0 and 1) or 0xe (2 and 3). Half of the bits are not used.
//
// It takes 2 bits for tau where 4 codewords are there, 4 where 8 are: 128 KiB for 512 x 512 channels and tau 2.
#pragma once

#include <cstdint>

#include "cuda/common/params.h"
#include "cuda/product/weight.h"

namespace subbit {

constexpr int kSparseDepth = 32;      // numbers of a step
constexpr int kSparseSteps = 4;       // that share two words
constexpr int kSparseMostTau = 3;     // 8 codewords are two groups of four
constexpr int kSparseStepBytes = 64;  // of a pixel: 32 responses of 16 bits

// Codewords that a channel has places for.
constexpr int sparse_slots(int codewords) { return codewords <= 4 ? 4 : 8; }
constexpr int sparse_step_channels(int slots) { return kSparseDepth / slots; }

struct SparseWeightShape {
  std::int64_t groups, group_outputs, group_channels;
  int slots, tau;
  std::int64_t blocks;  // of 16 outputs, of a group
  std::int64_t quads;   // of steps
};

inline SparseWeightShape sparse_weight_shape(const CudaParams& params) {
  SparseWeightShape s{};
  s.groups = params.conv.groups;
  s.group_outputs = params.group_outputs();
  s.group_channels = params.conv.in_channels / params.conv.groups;
  s.slots = sparse_slots(params.codewords);
  s.tau = tau_for(params.codewords);
  s.blocks = ceil_div(s.group_outputs, kFragmentOutputs);
  s.quads = ceil_div(s.group_channels, kSparseSteps * sparse_step_channels(s.slots));
  return s;
}

// Lanes' pairs of words.
inline std::int64_t sparse_weight_items(const SparseWeightShape& s) {
  return checked_product({s.groups, s.blocks, s.quads, kWarpLanes}, "prepared weight");
}

}  // namespace subbit
