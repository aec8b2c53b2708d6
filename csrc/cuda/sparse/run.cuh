// A call of the sparse route: x brought into the order that the kernel reads (as the product's), a box and a tile
// chosen, the kernel started.
#pragma once

#include <cstdint>

#include "cuda/product/run.cuh"
#include "cuda/sparse/kernel.cuh"

namespace subbit {

using NarrowSparseTile = SparseTile<4, 4, 1, 2>;
using MiddleSparseTile = SparseTile<4, 4, 2, 2>;
using WideSparseTile = SparseTile<4, 8, 4, 1>;

template <class Kind, class Tile>
Status start_sparse(const SparseArgs& args, std::int64_t blocks, Stream stream) {
  return start<Sparse<Kind, Tile>>(blocks, static_cast<std::size_t>(args.box.shared_bytes), args, stream);
}

template <class Kind>
Status run_sparse_kind(const CudaParams& params, const CudaOperands& operands, const SparsePlan& plan, Stream stream) {
  SparseArgs args{};
  args.params = params;
  args.operands = operands;
  args.weight = sparse_weight_shape(params);
  args.index_row_words = index_row_words(params.units(), args.weight.tau);
  args.epilogue = tile_epilogue_args(params.conv);
  args.box = plan.box;
  args.output_tiles = static_cast<std::uint32_t>(ceil_div(params.group_outputs(), plan.outputs));
  args.row_boxes = static_cast<std::uint32_t>(plan.box.row_boxes(params.conv));
  args.column_boxes = static_cast<std::uint32_t>(plan.box.column_boxes(params.conv));
  const Status status = start_input(params, operands, stream, args.x);
  if (status != kStarted) return status;
  const std::int64_t blocks = plan.blocks(params);
  switch (plan.outputs) {
    case NarrowSparseTile::kOutputs:
      return start_sparse<Kind, NarrowSparseTile>(args, blocks, stream);
    case MiddleSparseTile::kOutputs:
      return start_sparse<Kind, MiddleSparseTile>(args, blocks, stream);
    default:
      break;
  }
  if constexpr (Kind::kParts == 1) return start_sparse<Kind, WideSparseTile>(args, blocks, stream);
  return status;
}

template <class T, int kParts>
Status run_sparse(const CudaParams& params, const CudaOperands& operands, const SparsePlan& plan, Stream stream) {
  if (sparse_slots_of(params) == 4) return run_sparse_kind<SparseKind<T, kParts, 4>>(params, operands, plan, stream);
  return run_sparse_kind<SparseKind<T, kParts, 8>>(params, operands, plan, stream);
}

// Beside a tile and a box, what the product needs of sizes: it reads the same x, and packs the same words.
inline bool runs_sparse(const CudaParams& params) {
  if (!runs_product(params)) return false;
  const SparsePlan plan = plan_sparse(params);
  return plan.outputs != 0 && plan.blocks(params) <= kMostBlocks &&
         sparse_weight_items(sparse_weight_shape(params)) <= kMostItems;
}

}  // namespace subbit
