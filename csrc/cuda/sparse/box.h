// Which output pixels a block of the sparse route (kernel.cuh) takes, and where the x that they see lies in its shared
// memory: a pure function of sizes.
#pragma once

#include <cstdint>

#include "cuda/common/params.h"
#include "cuda/sparse/weight.h"

namespace subbit {

constexpr int kBoxPixels = 64;  // of a block, at most: places in pairs along rows
constexpr int kBoxPairs = kBoxPixels / 2;
constexpr int kSparsePieceBytes = 16;
constexpr int kTaps = 3;  // of a row or a column of a kernel

// How a kernel whose x is so many 16-bit parts, and whose channels have places for so many codewords, goes through the
// channels: in stages of 16, which is what a fragment of responses has, or of 32 where four steps of products take
// them. Responses have two buffers, or one where they are three parts.
constexpr int sparse_stage_steps(int parts, int slots) { return parts == 1 || slots == 8 ? 4 : 2; }
constexpr int sparse_stage_channels(int parts, int slots) {
  return sparse_stage_steps(parts, slots) * sparse_step_channels(slots);
}
constexpr int sparse_response_buffers(int parts) { return parts == 1 ? 2 : 1; }
constexpr int kSparseTileBuffers = 2;  // of x

// Responses of a step: 64 bytes per pixel, and 64 so that the same pixel of the next step is on other banks.
constexpr int kSparseStepRow = kBoxPixels * kSparseStepBytes + 64;

// Bytes of shared memory in a block of so many outputs: what no box changes (pixels, pairs, five epilogue vectors), the
// responses, and the sums that at the end take the place of these and of the tiles of x, all or half at a time.
constexpr int sparse_fixed_bytes(int outputs) { return kBoxPixels * 12 + kBoxPairs * 4 + outputs * 20; }
constexpr int sparse_response_bytes(int parts, int slots) {
  return sparse_response_buffers(parts) * parts * sparse_stage_steps(parts, slots) * kSparseStepRow;
}
constexpr int sparse_warps(int outputs) { return outputs > 64 ? 4 : 2; }
constexpr int sparse_rounds(int outputs) { return outputs > 128 ? 2 : 1; }
constexpr int sparse_sum_row(int outputs) { return outputs + 5; }  // floats; why 5: product/kernel.cuh

// A box of images x rows x (2 x pairs) output pixels, and its tile of x: for each image the rows and columns that the
// pixels' taps span, padding included.
struct SparseBox {
  int images = 0, rows = 0, pairs = 0;  // images is 0 where no box fits
  // Two pixels of a pair see `span` columns of x, which are steps of the dilation apart, where that is at most 5: then
  // the positions of both are at most 15, and one product of 16 positions serves both. Else 3: each for itself.
  int span = 0;
  int tile_rows = 0, tile_columns = 0;
  int position_bytes = 0, row_bytes = 0, image_bytes = 0, tile_bytes = 0;
  int responses = 0;  // where they begin, after the table of positions
  int shared_bytes = 0;

  constexpr bool is_paired() const { return span > kTaps; }
  constexpr int positions() const { return images * tile_rows * tile_columns; }
  std::int64_t row_boxes(const ConvProblem& conv) const { return ceil_div(conv.out_height, rows); }
  std::int64_t column_boxes(const ConvProblem& conv) const { return ceil_div(conv.out_width, 2 * pairs); }
  std::int64_t boxes(const ConvProblem& conv) const {
    return ceil_div(conv.batch, images) * row_boxes(conv) * column_boxes(conv);
  }
};

// Bytes of a position of x in the tile's row, and of a row. ldmatrix reads 8 positions at once, which must lie in the 8
// different sixteens of bytes of the 128 that the banks are: the first 8 of the `span` columns of three rows do where a
// position is an odd number of sixteens and a row `span` positions more than a multiple of 8 of them. (Two rows of a
// dilated kernel may meet where the dilation is even.)
constexpr int sparse_position_bytes(int pieces) { return (pieces | 1) * kSparsePieceBytes; }
constexpr int sparse_row_bytes(int columns, int span, int pieces) {
  const int step = pieces | 1, least = columns * step, wanted = span * step;
  return (least + ((wanted - least) % 8 + 8) % 8) * kSparsePieceBytes;
}

// What a box is expected to take, in positions of x that are copied in the same time: those of the box, and those of
// its products. 64 pixels of 32 channels take about 450 clocks (kernel.cuh), a copied position, 64 bytes, 1.5.
constexpr int kBoxPositions = 300;

// The boxes that together take the least time of those that fit the memory that a block has on every device, for a tile
// of so many outputs.
SparseBox plan_sparse_box(const CudaParams& params, int outputs);

// A tile's outputs, 64, 128 or 256 (0: there is no kernel), and its box.
struct SparsePlan {
  int outputs = 0;
  SparseBox box;

  std::int64_t blocks(const CudaParams& params) const {
    return checked_product({box.boxes(params.conv), params.conv.groups, ceil_div(params.group_outputs(), outputs)},
                           "grid");
  }
};

// The widest tile that is not half empty, of those that fill the devices in question (108 to 144 multiprocessors); the
// narrowest where none does. Sums do not depend on it.
SparsePlan plan_sparse(const CudaParams& params);

// Places of codewords, and parts of x.
inline int sparse_slots_of(const CudaParams& params) { return sparse_slots(params.codewords); }
inline int sparse_parts_of(const CudaParams& params) { return params.element == Element::kFloat32 ? 3 : 1; }

}  // namespace subbit
