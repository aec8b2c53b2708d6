// The signs of x as packed activations (subbit_infer/core/activations.py), and packed activations cut into groups. Each
// group of channels begins a new word in what is written; with one group that is the format that calls pass on.
//
// Bound by memory: 1 to 4 bytes are read for each bit or two that are written.
#pragma once

#include <cstdint>

#include "cuda/common/epilogue.cuh"
#include "cuda/common/params.h"
#include "cuda/common/pixel.cuh"
#include "cuda/common/platform.h"
#include "cuda/common/start.cuh"

namespace subbit {

struct PackArgs {
  std::int64_t batch, height, width;
  std::int64_t groups, group_channels;
  const void* x;
  Element element;
  std::int64_t x_n, x_c, x_h, x_w;
  const float* shift;  // (channels,) or null
  bool sign_zero;
  std::uint32_t* plus;     // [n][row][column][group][halves of words]
  std::uint32_t* nonzero;  // or null

  std::uint32_t pixels = 0, group_halves = 0, halves = 0;  // 32-bit words of a group and of a pixel; set by start_pack
};

// The channels of half a word: so many from the first on, fewer than 32 at the end of a group.
struct HalfWord {
  std::int64_t first;
  int count;
};

SUBBIT_DEVICE HalfWord channels_of(const PackArgs& a, std::uint32_t half) {
  const std::uint32_t group = half / a.group_halves;
  const std::int64_t channel = std::int64_t{half - group * a.group_halves} * 32, left = a.group_channels - channel;
  return {group * a.group_channels + channel, static_cast<int>(left < 0 ? 0 : left < 32 ? left : 32)};
}

SUBBIT_DEVICE SignBits pack_one(const PackArgs& a, std::int64_t pixel_offset, const HalfWord& channels, int bit) {
  if (bit >= channels.count) return {false, false};
  const std::int64_t c = channels.first + bit;
  const float v = load_element(a.x, a.element, pixel_offset + c * a.x_c);
  return sign_bits(v, a.shift ? a.shift[c] : 0.0f, a.sign_zero);
}

SUBBIT_DEVICE std::int64_t pixel_offset_of(const PackArgs& a, std::uint32_t pixel) {
  const Pixel at = pixel_of(pixel, a.height, a.width);
  return at.image * a.x_n + at.row * a.x_h + at.column * a.x_w;
}

// Channels lie next to each other: a warp reads 32 of one pixel at once.
struct PackChannelsLast {
  static constexpr int kThreads = 256, kBlocksPerMultiprocessor = 4;
  static constexpr int kWarp = 32;

  static SUBBIT_DEVICE void run(const PackArgs& a) {
    constexpr int kWarps = kThreads / kWarp;
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    const std::uint32_t count = a.pixels * a.halves;
    // The same number of turns for a whole block: ballots need that ptxas sees converged warps.
    for (std::uint32_t first = blockIdx.x * kWarps; first < count; first += gridDim.x * kWarps) {
      const std::uint32_t i = first + threadIdx.x / kWarp, pixel = i / a.halves;
      SignBits bits{false, false};
      if (i < count) bits = pack_one(a, pixel_offset_of(a, pixel), channels_of(a, i - pixel * a.halves), lane);
      const std::uint32_t plus = __ballot_sync(~0u, bits.plus), nonzero = __ballot_sync(~0u, bits.nonzero);
      if (lane == 0 && i < count) {
        a.plus[i] = plus;
        if (a.nonzero) a.nonzero[i] = nonzero;
      }
    }
  }
};

// Any other strides: a thread reads 32 channels of one pixel, and its neighbours those of the next pixels.
struct PackPixelsAlong {
  static constexpr int kThreads = 256, kBlocksPerMultiprocessor = 4;

  static SUBBIT_DEVICE void run(const PackArgs& a) {
    const std::uint32_t count = a.pixels * a.halves;
    for (std::uint32_t i = thread_of_grid(); i < count; i += threads_of_grid()) {
      const std::uint32_t half = i / a.pixels, pixel = i - half * a.pixels;
      const std::int64_t offset = pixel_offset_of(a, pixel), to = std::int64_t{pixel} * a.halves + half;
      const HalfWord channels = channels_of(a, half);
      std::uint32_t plus = 0, nonzero = 0;
      for (int bit = 0; bit < 32; ++bit) {
        const SignBits bits = pack_one(a, offset, channels, bit);
        plus |= std::uint32_t{bits.plus} << bit;
        nonzero |= std::uint32_t{bits.nonzero} << bit;
      }
      a.plus[to] = plus;
      if (a.nonzero) a.nonzero[to] = nonzero;
    }
  }
};

// 32-bit words that packing x writes a plane.
inline std::int64_t pack_items(std::int64_t pixels, std::int64_t groups, std::int64_t group_channels) {
  return checked_product({pixels, groups, ceil_div(group_channels, kWordChannels), 2}, "packed activations");
}

// There are at most kMostItems of pack_items.
inline Status start_pack(PackArgs args, Stream stream) {
  const std::int64_t pixels = checked_product({args.batch, args.height, args.width}, "image");
  const std::int64_t items = pack_items(pixels, args.groups, args.group_channels);
  if (items == 0) return kStarted;
  args.pixels = static_cast<std::uint32_t>(pixels);
  args.group_halves = static_cast<std::uint32_t>(ceil_div(args.group_channels, kWordChannels) * 2);
  args.halves = static_cast<std::uint32_t>(args.groups * args.group_halves);
  if (args.x_c == 1) {
    return start<PackChannelsLast>(blocks_for(items * PackChannelsLast::kWarp, PackChannelsLast::kThreads), 0, args,
                                   stream);
  }
  return start<PackPixelsAlong>(blocks_for(items, PackPixelsAlong::kThreads), 0, args, stream);
}

struct RegroupArgs {
  std::int64_t pixels, groups, group_channels;
  const std::uint64_t* planes[2];  // [pixel][word]; the second may be null
  std::uint64_t* grouped[2];       // [pixel][group][word]
};

// Packed activations of groups that begin inside words.
struct Regroup {
  static constexpr int kThreads = 256, kBlocksPerMultiprocessor = 4;

  static SUBBIT_DEVICE void run(const RegroupArgs& a) {
    const std::int64_t words = divide_up(a.groups * a.group_channels, kWordChannels);
    const auto group_words = static_cast<std::uint32_t>(divide_up(a.group_channels, kWordChannels));
    const auto groups = static_cast<std::uint32_t>(a.groups);
    const auto count = static_cast<std::uint32_t>(a.pixels) * groups * group_words;
    for (std::uint32_t i = thread_of_grid(); i < count; i += threads_of_grid()) {
      const std::uint32_t row = i / group_words, pixel = row / groups, group = row - pixel * groups;
      const std::int64_t channel = std::int64_t{i - row * group_words} * kWordChannels;
      const std::int64_t first = group * a.group_channels + channel, left = a.group_channels - channel;
      const std::int64_t word = first / kWordChannels;
      const int shift = static_cast<int>(first % kWordChannels);
      for (int plane = 0; plane < 2; ++plane) {
        if (a.planes[plane] == nullptr) continue;
        const std::uint64_t* from = a.planes[plane] + pixel * words;
        std::uint64_t bits = from[word] >> shift;
        if (shift != 0 && word + 1 < words) bits |= from[word + 1] << (kWordChannels - shift);
        if (left < kWordChannels) bits &= (std::uint64_t{1} << left) - 1;
        a.grouped[plane][i] = bits;
      }
    }
  }
};

inline Status start_regroup(const RegroupArgs& args, Stream stream) {
  const std::int64_t items = args.pixels * args.groups * ceil_div(args.group_channels, kWordChannels);
  if (items == 0) return kStarted;
  return start<Regroup>(blocks_for(items, Regroup::kThreads), 0, args, stream);
}

}  // namespace subbit
