// Binary activations as the product of int8 reads them: one byte per channel, -1, 0 or +1, channels last, each group's
// channels padded with zeros to whole pieces of 16. They are made of floats, or of packed activations.
//
// Bound by memory: a quarter of a byte (two planes of bits) to 4 bytes are read for each that is written.
#pragma once

#include <cstdint>

#include "cuda/common/epilogue.cuh"
#include "cuda/common/params.h"
#include "cuda/common/pixel.cuh"
#include "cuda/common/platform.h"
#include "cuda/common/start.cuh"
#include "cuda/product/weight.h"

namespace subbit {

struct SignBytesArgs {
  std::int64_t batch, height, width;
  std::int64_t groups, group_channels;
  const void* x;  // floats of these strides, or null for what is packed
  Element element;
  std::int64_t x_n, x_c, x_h, x_w;
  bool sign_zero;                // of floats
  const std::uint32_t* plus;     // [n][row][column][halves of words]
  const std::uint32_t* nonzero;  // or null
  uint4* bytes;                  // [n][row][column][group][piece]

  std::uint32_t pixels = 0, group_pieces = 0, pieces = 0, halves = 0;  // of a pixel; set by start_sign_bytes
};

// The signs of a piece's channels, one bit each.
struct PieceSigns {
  std::uint32_t plus, nonzero;
};

template <class T>
SUBBIT_DEVICE PieceSigns signs_of_elements(const T* from, std::int64_t stride, int count, bool sign_zero) {
  PieceSigns signs{0, 0};
  SUBBIT_UNROLL
  for (int c = 0; c < kPieceBytes; ++c) {
    if (c >= count) continue;
    const SignBits bits = sign_bits(to_float(from[c * stride]), 0.0f, sign_zero);
    signs.plus |= std::uint32_t{bits.plus} << c;
    signs.nonzero |= std::uint32_t{bits.nonzero} << c;
  }
  return signs;
}

// The type is asked for once and not for every element, so that loads do not wait for each other.
SUBBIT_DEVICE PieceSigns signs_of_floats(const SignBytesArgs& a, std::uint32_t pixel, std::int64_t first, int count) {
  const Pixel at = pixel_of(pixel, a.height, a.width);
  const std::int64_t offset = at.image * a.x_n + at.row * a.x_h + at.column * a.x_w + first * a.x_c;
  switch (a.element) {
    case Element::kFloat32:
      break;
    case Element::kFloat16:
      return signs_of_elements(static_cast<const __half*>(a.x) + offset, a.x_c, count, a.sign_zero);
    case Element::kBfloat16:
      return signs_of_elements(static_cast<const __nv_bfloat16*>(a.x) + offset, a.x_c, count, a.sign_zero);
  }
  return signs_of_elements(static_cast<const float*>(a.x) + offset, a.x_c, count, a.sign_zero);
}

SUBBIT_DEVICE PieceSigns signs_of_words(const SignBytesArgs& a, std::uint32_t pixel, std::int64_t first, int count) {
  const int shift = static_cast<int>(first % 32);
  const std::int64_t half = std::int64_t{pixel} * a.halves + first / 32;
  const std::uint32_t mask = (1u << count) - 1;
  const auto read = [&](const std::uint32_t* plane) {
    std::uint32_t bits = plane[half] >> shift;
    if (shift + count > 32) bits |= plane[half + 1] << (32 - shift);
    return bits & mask;
  };
  return {read(a.plus), a.nonzero ? read(a.nonzero) : mask};
}

// The lowest four bits, a byte each: the factors' bits put bit k at 8 k, and nowhere else do two of them meet.
SUBBIT_HOST_DEVICE std::uint32_t spread(std::uint32_t bits) { return (bits & 15) * 0x00204081u & 0x01010101u; }

// A thread writes a piece.
struct SignBytes {
  static constexpr int kThreads = 256, kBlocksPerMultiprocessor = 4;

  static SUBBIT_DEVICE void run(const SignBytesArgs& a) {
    const std::uint32_t pixels = a.pixels, pieces = a.pieces, count = pixels * pieces;
    const bool along_channels = a.x == nullptr || a.x_c == 1;  // neighbouring threads read what lies side by side
    for (std::uint32_t i = thread_of_grid(); i < count; i += threads_of_grid()) {
      const std::uint32_t pixel = along_channels ? i / pieces : i % pixels;
      const std::uint32_t piece = along_channels ? i % pieces : i / pixels, group = piece / a.group_pieces;
      const std::int64_t in_group = std::int64_t{piece - group * a.group_pieces} * kPieceBytes;
      const std::int64_t first = group * a.group_channels + in_group, left = a.group_channels - in_group;
      const int channels = static_cast<int>(left < kPieceBytes ? left : kPieceBytes);
      const PieceSigns signs =
          a.x ? signs_of_floats(a, pixel, first, channels) : signs_of_words(a, pixel, first, channels);
      const std::uint32_t minus = signs.nonzero & ~signs.plus;
      const auto word = [&](int shift) { return spread(signs.plus >> shift) + spread(minus >> shift) * 0xffu; };
      a.bytes[std::int64_t{pixel} * pieces + piece] = make_uint4(word(0), word(4), word(8), word(12));
    }
  }
};

// There are at most kMostItems pieces.
inline Status start_sign_bytes(SignBytesArgs args, Stream stream) {
  const std::int64_t pixels = checked_product({args.batch, args.height, args.width}, "image");
  const std::int64_t group_pieces = ceil_div(args.group_channels, kPieceBytes);
  const std::int64_t items = checked_product({pixels, args.groups, group_pieces}, "arranged input");
  if (items == 0) return kStarted;
  args.pixels = static_cast<std::uint32_t>(pixels);
  args.group_pieces = static_cast<std::uint32_t>(group_pieces);
  args.pieces = static_cast<std::uint32_t>(args.groups * group_pieces);
  args.halves = static_cast<std::uint32_t>(ceil_div(args.groups * args.group_channels, kWordChannels) * 2);
  return start<SignBytes>(blocks_for(items, SignBytes::kThreads), 0, args, stream);
}

}  // namespace subbit
