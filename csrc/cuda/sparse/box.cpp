#include "cuda/sparse/box.h"

#include <algorithm>

namespace subbit {
namespace {

constexpr std::int64_t kSharedLimit = 99 << 10;  // what a block may have on sm_86 and sm_89
constexpr int kAlignment = 128, kPositionBytes = 16;

int span_of(const ConvProblem& conv) {
  if (conv.stride_w == conv.dilation_w) return kTaps + 1;
  if (conv.stride_w == 2 * conv.dilation_w) return kTaps + 2;
  return kTaps;
}

// How much of x so many output pixels in a row see.
std::int64_t seen(std::int64_t pixels, std::int64_t stride, std::int64_t dilation) {
  return (pixels - 1) * stride + (kTaps - 1) * dilation + 1;
}

// Lays out the tile of x. False where it does not fit.
bool place(SparseBox& box, const CudaParams& params, int outputs) {
  const ConvProblem& conv = params.conv;
  const int parts = sparse_parts_of(params), slots = sparse_slots_of(params);
  const std::int64_t rows = seen(box.rows, conv.stride_h, conv.dilation_h);
  const std::int64_t columns = seen(2 * box.pairs, conv.stride_w, conv.dilation_w);
  if (rows > kSharedLimit || columns > kSharedLimit || box.images * rows * columns > kSharedLimit) return false;
  const int pieces = sparse_stage_channels(parts, slots) * 2 / kSparsePieceBytes;
  box.span = span_of(conv);
  box.tile_rows = static_cast<int>(rows);
  box.tile_columns = static_cast<int>(columns);
  box.position_bytes = sparse_position_bytes(pieces);
  box.row_bytes = sparse_row_bytes(box.tile_columns, box.span, pieces);
  const std::int64_t image = rows * box.row_bytes, tile = round_up(box.images * image, kAlignment);
  const std::int64_t fixed = round_up(sparse_fixed_bytes(outputs), kAlignment);
  const std::int64_t table = round_up(std::int64_t{kPositionBytes} * box.positions(), kAlignment);
  const std::int64_t stages = sparse_response_bytes(parts, slots) + kSparseTileBuffers * parts * tile;
  const std::int64_t sums = std::int64_t{4} * kBoxPixels / sparse_rounds(outputs) * sparse_sum_row(outputs);
  const std::int64_t bytes = fixed + table + std::max(stages, sums);
  if (bytes > kSharedLimit) return false;
  box.image_bytes = static_cast<int>(image);
  box.tile_bytes = static_cast<int>(tile);
  box.responses = static_cast<int>(fixed + table);
  box.shared_bytes = static_cast<int>(bytes);
  return true;
}

// Whether there is a tile: float activations, a codebook that fits, positions that are 32-bit numbers.
bool has_kernel(const CudaParams& params) {
  return params.conv.unit == Unit::k3x3 && params.conv.activations == Activations::kFloat &&
         tau_for(params.codewords) <= kSparseMostTau;
}

}  // namespace

SparseBox plan_sparse_box(const CudaParams& params, int outputs) {
  const ConvProblem& conv = params.conv;
  const auto at_most = [](std::int64_t count, int most) {
    return static_cast<int>(std::min<std::int64_t>(count, most));
  };
  SparseBox best;
  std::int64_t least = 0;
  for (int pairs = at_most(ceil_div(conv.out_width, 2), kBoxPairs); pairs >= 1; --pairs) {
    for (int rows = at_most(conv.out_height, kBoxPairs / pairs); rows >= 1; --rows) {
      SparseBox box;
      box.pairs = pairs;
      box.rows = rows;
      box.images = at_most(conv.batch, kBoxPairs / (pairs * rows));
      while (box.images >= 1 && !place(box, params, outputs)) --box.images;
      if (box.images < 1) continue;
      const std::int64_t time = box.boxes(conv) * (kBoxPositions + box.positions());
      if (best.images != 0 && time >= least) continue;
      best = box;
      least = time;
    }
  }
  return best;
}

SparsePlan plan_sparse(const CudaParams& params) {
  SparsePlan plan;
  if (!has_kernel(params)) return plan;
  for (int outputs : {256, 128, 64}) {
    if (outputs > 64 && (params.group_outputs() <= outputs / 2 || (outputs > 128 && sparse_parts_of(params) > 1))) {
      continue;
    }
    const SparsePlan next{outputs, plan_sparse_box(params, outputs)};
    if (next.box.images == 0) continue;
    plan = next;
    if (plan.blocks(params) >= kEnoughBlocks) break;
  }
  return plan;
}

}  // namespace subbit
