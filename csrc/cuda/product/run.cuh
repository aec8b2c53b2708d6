// A call of the product: x brought into the order that the kernel reads, a tile chosen, the kernel started.
#pragma once

#include <cstdint>

#include "cuda/product/kernel.cuh"

namespace subbit {

constexpr std::int64_t kCopyBytes = 16;  // what asynchronous copies are aligned to

constexpr std::int64_t group_channels_of(const CudaParams& params) {
  return params.conv.in_channels / params.conv.groups;
}

// Whether x is read where it is: words whose groups begin at whole words, or 16-bit numbers with channels side by side
// and pieces of 16 bytes that are aligned and whole. Nobody passes binary activations as bytes.
inline bool reads_in_place(const CudaParams& params, const CudaOperands& operands) {
  const ConvProblem& conv = params.conv;
  if (is_binary(params)) {
    return has_bit_products(params.capability) && conv.x_is_packed &&
           (conv.groups == 1 || group_channels_of(params) % kWordChannels == 0);
  }
  const auto whole = [](std::int64_t elements) { return elements * 2 % kPieceBytes == 0; };
  return params.element != Element::kFloat32 && conv.x_c == 1 && whole(group_channels_of(params)) && whole(conv.x_n) &&
         whole(conv.x_h) && whole(conv.x_w) && reinterpret_cast<std::uintptr_t>(operands.x) % kCopyBytes == 0;
}

inline std::int64_t input_pixels(const CudaParams& params) {
  return checked_product({params.conv.batch, params.conv.height, params.conv.width}, "input");
}

// Planes of x as the kernel reads it, and the bytes of one of a pixel.
inline int input_planes(const CudaParams& params, const CudaOperands& operands) {
  if (multiplies_bits(params)) return params.conv.x_is_packed && operands.x_nonzero == nullptr ? 1 : 2;
  return !is_binary(params) && params.element == Element::kFloat32 ? 3 : 1;
}
inline std::int64_t group_bytes(const CudaParams& params) {
  if (multiplies_bits(params)) return ceil_div(group_channels_of(params), kWordChannels) * 8;
  return round_up(group_channels_of(params) * number_bytes(params), kPieceBytes);
}
inline std::int64_t plane_bytes(const CudaParams& params) {
  const std::int64_t bytes =
      checked_product({input_pixels(params), params.conv.groups, group_bytes(params)}, "scratch memory");
  return round_up(bytes, kCopyBytes);
}

inline std::int64_t scratch_bytes(const CudaParams& params, const CudaOperands& operands) {
  if (reads_in_place(params, operands)) return 0;
  return checked_product({input_planes(params, operands), plane_bytes(params)}, "scratch memory");
}

// x, read in place or rearranged into the scratch memory (input.cuh).
Status start_input(const CudaParams& params, const CudaOperands& operands, Stream stream, ProductInput& input);

inline std::int64_t output_pixels(const CudaParams& params) {
  return checked_product({params.conv.batch, params.conv.out_height, params.conv.out_width}, "output");
}

// Outputs of a group that tiles must cover: those there are, and what fills the last word of packed results.
inline std::int64_t covered_outputs(const CudaParams& params) {
  const std::int64_t outputs = params.group_outputs();
  return params.conv.packs && params.conv.groups == 1 ? round_up(outputs, kWordChannels) : outputs;
}

template <class Tile>
std::int64_t blocks_of(const CudaParams& params) {
  return checked_product({ceil_div(output_pixels(params), Tile::kPixels), params.conv.groups,
                          ceil_div(covered_outputs(params), Tile::kOutputs)},
                         "grid");
}

// x is read in place, or brought into order by a kernel that is started here.
inline Status start_args(const CudaParams& params, const CudaOperands& operands, Stream stream, ProductArgs& args) {
  const ConvProblem& conv = params.conv;
  args.params = params;
  args.operands = operands;
  args.weight = product_weight_shape(params);
  args.pixels = static_cast<std::uint32_t>(output_pixels(params));
  args.height = static_cast<std::int32_t>(conv.height);
  args.width = static_cast<std::int32_t>(conv.width);
  args.dilation_h = static_cast<std::int32_t>(conv.dilation_h);
  args.dilation_w = static_cast<std::int32_t>(conv.dilation_w);
  args.epilogue = tile_epilogue_args(conv);
  return start_input(params, operands, stream, args.x);
}

template <class Body, class Tile>
Status start_tile(ProductArgs args, Stream stream) {
  const std::int64_t blocks = blocks_of<Tile>(args.params);
  args.output_tiles = static_cast<std::uint32_t>(ceil_div(covered_outputs(args.params), Tile::kOutputs));
  return start<Body>(blocks, Body::kSharedBytes, args, stream);
}

template <class Tile>
bool fills_device(const CudaParams& params) {
  return blocks_of<Tile>(params) >= kEnoughBlocks;
}

template <class Kind, class Large, class Small>
Status run_product(const CudaParams& params, const CudaOperands& operands, Stream stream) {
  ProductArgs args{};
  const Status status = start_args(params, operands, stream, args);
  if (status != kStarted) return status;
  if (fills_device<Large>(params)) return start_tile<Product<Kind, Large>, Large>(args, stream);
  return start_tile<Product<Kind, Small>, Small>(args, stream);
}

using SmallTile = ProductTile<2, 2, 1, 1, 4, 4, 3>;

inline bool runs_product(const CudaParams& params) {
  const ConvProblem& conv = params.conv;
  // Positions in x are 32-bit numbers, padding and the farthest tap counted; so are steps of K, and counts of bits.
  constexpr std::int64_t kMostPositions = 1 << 29, kMostChannels = 1 << 24;
  const auto fits = [](std::int64_t size, std::int64_t pad, std::int64_t dilation, std::int64_t out) {
    return size < kMostPositions && pad < kMostPositions && dilation < kMostPositions / 2 && out < kMostPositions;
  };
  if (!fits(conv.height, conv.pad_h, conv.dilation_h, conv.out_height) ||
      !fits(conv.width, conv.pad_w, conv.dilation_w, conv.out_width)) {
    return false;
  }
  if (conv.batch >= kMostPositions || group_channels_of(params) > kMostChannels) return false;
  // Packed results of groups that end inside words would need words that two blocks write.
  if (conv.packs && conv.groups > 1 && params.group_outputs() % kWordChannels != 0) return false;
  const ProductWeightShape weight = product_weight_shape(params);
  if (product_sign_words(weight) + product_counts(weight) > kMostItems) return false;
  const std::int64_t pieces = checked_product({input_pixels(params), conv.groups, group_bytes(params) / 4}, "input");
  if (pieces > kMostItems) return false;
  // Pixels are counted in 32 bits, whole tiles of them.
  constexpr std::int64_t kMostPixels = (std::int64_t{1} << 32) - 128;
  return output_pixels(params) <= kMostPixels && blocks_of<SmallTile>(params) <= kMostBlocks;
}

}  // namespace subbit
