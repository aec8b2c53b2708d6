// What every kernel of the product knows of its call and its tile: which outputs and pixels a block has, and where a
// piece of K lies in x.
#pragma once

#include <cstdint>

#include "cuda/common/params.h"
#include "cuda/common/platform.h"
#include "cuda/common/tile_epilogue.cuh"
#include "cuda/product/weight.h"

namespace subbit {

// x as the kernel reads it: planes of pixels, strides in bytes.
struct ProductInput {
  const unsigned char* planes[3];
  std::int64_t n, h, w, group;
  std::uint32_t tap_pieces;  // pieces of a tap that are there
};

struct ProductArgs {
  CudaParams params;
  CudaOperands operands;
  ProductInput x;
  ProductWeightShape weight;
  TileEpilogueArgs epilogue;
  std::uint32_t pixels, output_tiles;                  // tiles of a group
  std::int32_t height, width, dilation_h, dilation_w;  // of x
};

// The first output, of a group, and the first pixel of a block's tile.
struct TileStart {
  std::int64_t group, output;
  std::uint32_t pixel;
};

// Outputs first: blocks that run together share their x.
template <int kOutputs, int kPixels>
SUBBIT_DEVICE TileStart tile_start(const ProductArgs& a) {
  const std::uint32_t tile = blockIdx.x;
  const std::uint32_t row = tile / a.output_tiles, groups = static_cast<std::uint32_t>(a.weight.groups);
  return {row % groups, static_cast<std::int64_t>(tile - row * a.output_tiles) * kOutputs, row / groups * kPixels};
}

// Where a pixel of the tile is.
struct TilePixel {
  std::int64_t x_offset;     // of its first tap in x, which may be outside
  std::int32_t row, column;  // of its first tap
  OutputPixel to;
};

template <int kPixels, int kThreads>
SUBBIT_DEVICE void set_up_pixels(const ProductArgs& a, TilePixel (&pixels)[kPixels], std::uint32_t first_pixel) {
  const ConvProblem& conv = a.params.conv;
  SUBBIT_UNROLL
  for (int first = 0; first < kPixels; first += kThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    if (kPixels % kThreads != 0 && i >= kPixels) continue;
    constexpr std::int32_t kNowhere = -(1 << 30);
    TilePixel pixel{0, kNowhere, kNowhere, {-1, 0, 0}};
    const std::uint32_t number = first_pixel + i;
    if (number < a.pixels) {
      const auto height = static_cast<std::uint32_t>(conv.out_height);
      const auto width = static_cast<std::uint32_t>(conv.out_width);
      const std::uint32_t line = number / width, image = line / height;
      pixel.to = {static_cast<std::int32_t>(image), static_cast<std::int32_t>(line - image * height),
                  static_cast<std::int32_t>(number - line * width)};
      const std::int64_t row = pixel.to.row * conv.stride_h - conv.pad_h;
      const std::int64_t column = pixel.to.column * conv.stride_w - conv.pad_w;
      pixel.row = static_cast<std::int32_t>(row);
      pixel.column = static_cast<std::int32_t>(column);
      pixel.x_offset = image * a.x.n + row * a.x.h + column * a.x.w;
    }
    pixels[i] = pixel;
  }
}

struct Offset {
  std::int32_t row, column;
};

constexpr int kMaxTaps = 9;

SUBBIT_DEVICE Offset offset_of(const ProductArgs& a, int tap) {
  const int row = a.weight.taps == kMaxTaps ? tap / 3 : 0, column = a.weight.taps == kMaxTaps ? tap % 3 : 0;
  return {row * a.dilation_h, column * a.dilation_w};
}

SUBBIT_DEVICE bool is_inside(const ProductArgs& a, const TilePixel& pixel, const Offset& offset) {
  // As unsigned numbers the negative ones are large; & and not &&, which would branch.
  const auto row = static_cast<std::uint32_t>(pixel.row + offset.row);
  const auto column = static_cast<std::uint32_t>(pixel.column + offset.column);
  return (row < static_cast<std::uint32_t>(a.height)) & (column < static_cast<std::uint32_t>(a.width));
}

// A piece of K: where it is from a pixel's first tap on, and whether it is there at all.
struct PieceOfTap {
  std::int64_t from;
  Offset offset;
  bool is_there;
};

template <int kPieceBytes>
SUBBIT_DEVICE PieceOfTap piece_of_tap(const ProductArgs& a, std::uint32_t slot, std::int64_t group) {
  const auto tap_slots = static_cast<std::uint32_t>(a.weight.tap_slots);
  const std::uint32_t tap = slot / tap_slots, in_tap = slot - tap * tap_slots;
  const Offset offset = offset_of(a, static_cast<int>(tap));
  const bool is_there = (tap < static_cast<std::uint32_t>(a.weight.taps)) & (in_tap < a.x.tap_pieces);
  return {
      group * a.x.group + offset.row * a.x.h + offset.column * a.x.w + static_cast<std::int64_t>(in_tap) * kPieceBytes,
      offset, is_there};
}

}  // namespace subbit
