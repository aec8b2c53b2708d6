// What the sparse route's kernel (kernel.cuh) is compiled for, the tiles of blocks and the kinds of x; and what it is
// given.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/common/params.h"
#include "cuda/common/platform.h"
#include "cuda/common/tile_epilogue.cuh"
#include "cuda/product/pixels.cuh"
#include "cuda/sparse/box.h"
#include "cuda/sparse/weight.h"

namespace subbit {

// x is kParts 16-bit numbers of type T that are added up, in the order low, middle, high; channels have places for
// kSlots codewords.
template <class T, int kParts_, int kSlots_>
struct SparseKind {
  using Half = T;
  static constexpr int kParts = kParts_, kSlots = kSlots_;
  static constexpr std::uint32_t kOne = std::is_same<T, __half>::value ? 0x3c00u : 0x3f80u;
  static constexpr int kStepChannels = sparse_step_channels(kSlots);
  static constexpr int kSteps = sparse_stage_steps(kParts, kSlots);  // of a stage
  static constexpr int kStageChannels = sparse_stage_channels(kParts, kSlots);
  static constexpr int kBuffers = sparse_response_buffers(kParts);
};

// A block's tile: kWarpsM x kWarpsN warps of 16 kM outputs x 8 kN pixels.
template <int kM_, int kN_, int kWarpsM_, int kWarpsN_>
struct SparseTile {
  static constexpr int kM = kM_, kN = kN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kWarps = kWarpsM * kWarpsN;
  static constexpr int kOutputs = kFragmentOutputs * kM * kWarpsM;
  static constexpr int kThreads = kWarpLanes * kWarps;
  static_assert(kFragmentPixels * kN * kWarpsN == kBoxPixels && kWarps == sparse_warps(kOutputs));
};

struct SparseArgs {
  CudaParams params;
  CudaOperands operands;
  ProductInput x;
  SparseWeightShape weight;
  TileEpilogueArgs epilogue;
  SparseBox box;
  std::int64_t index_row_words;
  std::uint32_t output_tiles, row_boxes, column_boxes;
};

}  // namespace subbit
