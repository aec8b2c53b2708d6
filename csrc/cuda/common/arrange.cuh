// x as the product of floats reads it: 16-bit numbers, channels last, each group's channels padded with zeros to whole
// pieces of 8; float32 split into three bfloat16 parts.
//
// The split is exact: a float32 has 24 significant bits, and `high` takes the first 8 of them, `middle` the first 8 of
// the rest and `low` what is left, at most 8. Cutting (not rounding) leaves rests that are exact float32 differences,
// and never carries a large number to infinity. |middle| < 2^-7 |x|, |low| < 2^-15 |x|. Only bits below 2^-133, the
// smallest bfloat16, are lost: of numbers below 2^-109. NaN and infinities are in `high` alone.
//
// Bound by memory: 4 bytes are read and 6 written of a float32, 2 and 2 of the others. A tensor of 16-bit numbers that
// already is channels_last is never copied.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/common/params.h"
#include "cuda/common/pixel.cuh"
#include "cuda/common/platform.h"
#include "cuda/common/start.cuh"
#include "cuda/product/weight.h"

namespace subbit {

constexpr int kPieceNumbers = kPieceBytes / 2;

struct ArrangeArgs {
  std::int64_t batch, height, width;
  std::int64_t groups, group_channels;
  const void* x;
  std::int64_t x_n, x_c, x_h, x_w;
  uint4* arranged;  // [part][n][row][column][group][piece]

  std::uint32_t pixels = 0, group_pieces = 0, pieces = 0;  // pieces of a pixel; set by start_arrange
};

struct Parts {
  std::uint16_t part[3];  // low, middle, high
};

SUBBIT_HOST_DEVICE Parts split(float v) {
  const auto bits_of = [](float f) {
    std::uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
  };
  const auto first_bits = [](std::uint32_t bits) {
    const std::uint32_t cut = bits & 0xffff0000u;
    float f;
    memcpy(&f, &cut, sizeof f);
    return f;
  };
  constexpr std::uint32_t kExponent = 0x7f800000u, kQuiet = 0x00400000u;
  const std::uint32_t bits = bits_of(v);
  if ((bits & kExponent) == kExponent) {
    const bool is_nan = (bits & ~0x80000000u) != kExponent;
    return {{0, 0, static_cast<std::uint16_t>((is_nan ? bits | kQuiet : bits) >> 16)}};
  }
  const std::uint32_t rest = bits_of(v - first_bits(bits)), last = bits_of(first_bits(rest));
  const float low = (v - first_bits(bits)) - first_bits(last);
  return {{static_cast<std::uint16_t>(bits_of(low) >> 16), static_cast<std::uint16_t>(rest >> 16),
           static_cast<std::uint16_t>(bits >> 16)}};
}

template <class T>
SUBBIT_DEVICE Parts parts_at(const void* x, std::int64_t i) {
  if constexpr (sizeof(T) == 4) {
    return split(static_cast<const T*>(x)[i]);
  } else {
    return {{static_cast<const std::uint16_t*>(x)[i], 0, 0}};
  }
}

// A thread writes a piece of every part.
template <class T>
struct Arrange {
  static constexpr int kThreads = 256, kBlocksPerMultiprocessor = 4;
  static constexpr int kParts = sizeof(T) == 4 ? 3 : 1;

  static SUBBIT_DEVICE void run(const ArrangeArgs& a) {
    const std::uint32_t pixels = a.pixels, pieces = a.pieces, count = pixels * pieces;
    for (std::uint32_t i = thread_of_grid(); i < count; i += threads_of_grid()) {
      // Neighbouring threads read neighbouring elements.
      const std::uint32_t pixel = a.x_c == 1 ? i / pieces : i % pixels, piece = a.x_c == 1 ? i % pieces : i / pixels;
      const Pixel at = pixel_of(pixel, a.height, a.width);
      const std::uint32_t group = piece / a.group_pieces;
      const std::int64_t first = std::int64_t{piece - group * a.group_pieces} * kPieceNumbers;
      const std::int64_t offset =
          at.image * a.x_n + at.row * a.x_h + at.column * a.x_w + (group * a.group_channels + first) * a.x_c;
      std::uint32_t words[kParts][4] = {};
      SUBBIT_UNROLL
      for (int c = 0; c < kPieceNumbers; ++c) {
        if (first + c >= a.group_channels) continue;
        const Parts parts = parts_at<T>(a.x, offset + c * a.x_c);
        SUBBIT_UNROLL
        for (int part = 0; part < kParts; ++part) {
          words[part][c / 2] |= std::uint32_t{parts.part[part]} << (c % 2 * 16);
        }
      }
      SUBBIT_UNROLL
      for (int part = 0; part < kParts; ++part) {
        a.arranged[(std::int64_t{part} * pixels + pixel) * pieces + piece] =
            make_uint4(words[part][0], words[part][1], words[part][2], words[part][3]);
      }
    }
  }
};

// Pieces that are written of each part.
inline std::int64_t arrange_items(std::int64_t pixels, std::int64_t groups, std::int64_t group_channels) {
  return checked_product({pixels, groups, ceil_div(group_channels, kPieceNumbers)}, "arranged input");
}

// There are at most kMostItems of arrange_items.
template <class T>
Status start_arrange(ArrangeArgs args, Stream stream) {
  const std::int64_t pixels = checked_product({args.batch, args.height, args.width}, "image");
  const std::int64_t items = arrange_items(pixels, args.groups, args.group_channels);
  if (items == 0) return kStarted;
  args.pixels = static_cast<std::uint32_t>(pixels);
  args.group_pieces = static_cast<std::uint32_t>(ceil_div(args.group_channels, kPieceNumbers));
  args.pieces = static_cast<std::uint32_t>(args.groups * args.group_pieces);
  return start<Arrange<T>>(blocks_for(items, Arrange<T>::kThreads), 0, args, stream);
}

}  // namespace subbit
