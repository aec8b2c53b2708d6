// The tensor cores' route: the convolution as one product of matrices, pixels by K times K by outputs, K being taps
// times channels (product_weight.h has its order). The patches of x are never written out: a block gathers those of
// its tile of pixels step by step.
//
// Shared memory. A step of x is [pixel][64 bytes], as it comes: lane (g, t) of a warp reads the 16 bytes t of pixel g
// of its tile, which lie at 64 g + 16 t = 16 lane. So the lanes of each quarter of a warp, which are served together,
// read 128 bytes in a row, every bank once: free of conflicts without a swizzle; so are the 8 and 16 bytes a thread
// that copies write in a row. (K may have any order as long as x and the weight have the same, so 16 bytes hold what a
// lane needs for two products, and no transposing load is needed.) A step of bits is [8 outputs][16 lane]: the same.
//
// What bounds it, by arithmetic for an A100 (a multiprocessor does 1024 half multiply-adds a clock, 64 logical
// operations and 128 bytes of shared memory): the large tile of halves, 128 pixels x 128 outputs, four warps of 64 x
// 64. A step is 64 products of matrices a warp, 512 clocks. Its signs are decoded by 2 x 32 operations, 128 clocks of
// another pipe; x is read by 8 loads of 512 bytes a warp, 128 clocks for the four. So the tensor cores are the bound;
// the second-level cache gives 8 KiB a step, 16 bytes a clock and multiprocessor. Bits: 0.5 to 0.54 products a clock,
// 128 x 128 x 512 in 490 clocks, which reads 16 KiB twice, 256 clocks: tensor cores again, and with float activations
// around it the device's memory. None of this is measured yet.
//
// The small tile, 16 pixels x 32 outputs, is for calls that the large one would leave most of the device idle in: its
// four warps take every fourth step each, and their sums are added in the order of the warps. So the order of
// additions depends on the tile, and the tile on sizes alone, never on the device: equal calls give equal bits.
//
// Sums of bits. a in {-1, 0, 1} is +1 where `plus` is set, -1 where `minus` is (nonzero without plus); w is +1 or -1.
// a w = 1 exactly where plus & w or minus & ~w, 0 where neither plus nor minus is set, so over all of K
//     sum = agreeing - (nonzero - agreeing) = 2 (popc(plus & w) + popc(minus & ~w)) - popc(plus | minus).
// Both counts grow in the same accumulator; ~w beyond the channels meets minus = 0. Padding has neither bit. Where no
// activation is zero (no `nonzero` plane), minus = inside & ~plus, and over the taps inside the image
//     popc(minus & ~w) = inside - popc(plus) - popc(w inside) + popc(plus & w)
//     sum = 4 popc(plus & w) - 2 popc(plus) - 2 popc(w inside) + inside,
// one product in place of two; popc(w inside) comes from the counts of each tap, all of them but for border pixels.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/copy_async.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/mma.cuh"
#include "cuda/params.h"
#include "cuda/pixel.cuh"
#include "cuda/platform.h"
#include "cuda/product_weight.h"
#include "cuda/start.cuh"

namespace subbit {

// A block's tile: kWarpsM x kWarpsN warps of 16 kM pixels x 8 kN outputs, kWarpsK times over for parts of K; kSteps
// steps a stage, kStages stages in shared memory.
template <int kM_, int kN_, int kWarpsM_, int kWarpsN_, int kWarpsK_, int kSteps_, int kStages_>
struct ProductTile {
  static constexpr int kM = kM_, kN = kN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kWarpsK = kWarpsK_;
  static constexpr int kSteps = kSteps_, kStages = kStages_;
  static constexpr int kPixels = 16 * kM * kWarpsM, kOutputs = kFragmentOutputs * kN * kWarpsN;
  static constexpr int kThreads = kWarpLanes * kWarpsM * kWarpsN * kWarpsK;
  static_assert(kSteps % kWarpsK == 0 && kN % 4 == 0);
};

// Halves: x is kParts 16-bit numbers that are added up, of type T, in the order low, middle, high.
template <class T, int kParts>
struct HalvesKind {
  using Half = T;
  using Sum = float;
  static constexpr std::uint32_t kOnes = std::is_same<T, __half>::value ? 0x3c003c00u : 0x3f803f80u;  // two of +1
  static constexpr bool kIsBits = false;
  static constexpr int kPlanes = kParts, kPieceBytes = 16;
  // One part is one chain of additions in the tensor core. Three are added up stage by stage: the small parts first,
  // into a sum of their own that begins at 0, which is then added, rounded to nearest. So the tensor core's roundings,
  // of at most one unit in the last place (2^-23) and perhaps always towards 0, are of partial sums of a stage. With
  // S = sum |x| over K in all, n stages of k numbers: those of the high parts lose at most k 2^-23 of their stage's
  // |x|; those of the middle (and low) parts 2^-7 as much; the additions of stages n 2^-24 S. In all
  //     |error| <= (1.02 (k + 1) 2^-23 + n 2^-24) S,
  // for 512 channels (k = 64, n = 72) 207 x 2^-24 S, where a float32 sum in a row is allowed 4607 x 2^-24 S.
  static constexpr bool kSumsStages = kParts > 1;
};

// Bits: the planes are plus and, unless no activation is zero, nonzero.
template <int kPlanes_>
struct BitsKind {
  using Sum = std::int32_t;
  static constexpr bool kIsBits = true;
  static constexpr int kPlanes = kPlanes_, kPieceBytes = 8;
  static constexpr bool kSumsStages = false;
};

// x as the kernel reads it: planes of pixels, strides in bytes.
struct ProductInput {
  const unsigned char* planes[3];
  std::int64_t n, h, w, group;
  std::int64_t tap_pieces;  // pieces of a tap that are there
};

struct ProductArgs {
  CudaParams params;
  CudaOperands operands;
  ProductInput x;
  ProductWeightShape weight;
  std::int64_t pixels, output_tiles;  // tiles of a group
  std::int64_t y_words;               // 32-bit words of a pixel's packed results
  bool stores_pairs;                  // two neighbouring outputs of y can be stored at once
};

// Where a pixel of the tile is; `image` is negative where there is none.
struct TilePixel {
  std::int64_t x_offset;
  std::int32_t row, column;  // of its first tap in x, padding counted
  std::int32_t image, out_row, out_column;
};

template <class Kind, class Tile>
struct Product {
  using Sum = typename Kind::Sum;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kBlocksPerMultiprocessor = Tile::kM > 1 ? 2 : 4;
  static constexpr int kPieces = kStepBytes / Kind::kPieceBytes;
  static constexpr int kPlaneBytes = Tile::kSteps * Tile::kPixels * kStepBytes;
  static constexpr int kWeightBytes = Kind::kIsBits ? Tile::kSteps * Tile::kOutputs * kStepBytes : 0;
  static constexpr int kStageBytes = Kind::kPlanes * kPlaneBytes + kWeightBytes;
  static constexpr int kMaxTaps = 9;
  static constexpr int kVectors = 5;  // of ChannelEpilogue
  static constexpr int kCounters = Tile::kWarpsN * Tile::kWarpsK;

  struct Shared {
    alignas(128) unsigned char stages[Tile::kStages][kStageBytes];
    TilePixel pixels[Tile::kPixels];
    float channels[kVectors][Tile::kOutputs];
    std::int32_t plus_of_tap[Kind::kIsBits ? Tile::kOutputs : 1][kMaxTaps + 1];
    std::int32_t set_bits[Kind::kIsBits ? kCounters : 1][Tile::kPixels];  // of each pixel's K
  };
  static constexpr std::size_t kSharedBytes = sizeof(Shared);

  // Which warp of the tile this is, and which lane (g, t).
  struct Place {
    int m, n, k, g, t, lane;
  };

  using Sums = Sum[Tile::kM][Tile::kN][4];
  // The signs of halves of a stage that this warp takes.
  using Signs = std::uint32_t[Tile::kSteps / Tile::kWarpsK][Tile::kN / 4];

  static SUBBIT_DEVICE Place place() {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpLanes, lane = thread % kWarpLanes;
    return {warp % Tile::kWarpsM, warp / Tile::kWarpsM % Tile::kWarpsN, warp / (Tile::kWarpsM * Tile::kWarpsN),
            lane / 4, lane % 4, lane};
  }

  static SUBBIT_DEVICE void run(const ProductArgs& a) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    const std::int64_t tile = blockIdx.x;  // outputs first: blocks that run together share their x
    const std::int64_t output_tile = tile % a.output_tiles, group = tile / a.output_tiles % a.weight.groups;
    const std::int64_t first_pixel = tile / a.output_tiles / a.weight.groups * Tile::kPixels;
    const std::int64_t first_output = output_tile * Tile::kOutputs;
    const Place at = place();
    set_up(a, shared, group, first_output, first_pixel);
    __syncthreads();

    const int stages = static_cast<int>((a.weight.steps + Tile::kSteps - 1) / Tile::kSteps);
    SUBBIT_UNROLL
    for (int s = 0; s < Tile::kStages - 1; ++s) {
      if (s < stages) fill(a, shared, shared.stages[s], s, group, first_output);
      commit_copies();
    }
    Sums sums = {};
    std::int32_t set_bits[Tile::kM][2] = {};
    Signs signs = {}, next_signs = {};
    load_signs(a, next_signs, 0, group, first_output, at);
    for (int s = 0; s < stages; ++s) {
      wait_for_copies<Tile::kStages - 2>();
      __syncthreads();  // stage s is there for all, and nobody reads stage s - 1, which the next copies overwrite
      const int next = s + Tile::kStages - 1;
      if (next < stages) fill(a, shared, shared.stages[next % Tile::kStages], next, group, first_output);
      commit_copies();
      if constexpr (Kind::kIsBits) {
        multiply_bits(a, shared.stages[s % Tile::kStages], s, sums, set_bits, at);
      } else {
        SUBBIT_UNROLL
        for (int i = 0; i < Tile::kSteps / Tile::kWarpsK; ++i) {
          SUBBIT_UNROLL
          for (int j = 0; j < Tile::kN / 4; ++j) signs[i][j] = next_signs[i][j];
        }
        if (s + 1 < stages) load_signs(a, next_signs, s + 1, group, first_output, at);
        multiply_halves(shared.stages[s % Tile::kStages], sums, signs, at);
      }
    }
    if constexpr (Kind::kIsBits) share_set_bits(shared, set_bits, at);
    if constexpr (Tile::kWarpsK > 1) {
      add_warps(shared, sums, at);
    } else if constexpr (Kind::kIsBits) {
      __syncthreads();
    }
    if (at.k == 0) finish_tile(a, shared, sums, group, first_output, at);
  }

  static SUBBIT_DEVICE void set_up(const ProductArgs& a, Shared& shared, std::int64_t group, std::int64_t first_output,
                                   std::int64_t first_pixel) {
    const ConvParams& conv = a.params.conv;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kPixels; i += kThreads) {
      constexpr std::int32_t kNowhere = -(1 << 30);
      TilePixel pixel{0, kNowhere, kNowhere, -1, 0, 0};
      if (first_pixel + i < a.pixels) {
        const Pixel out = pixel_at(first_pixel + i, conv.out_height, conv.out_width);
        pixel = {out.image * a.x.n,
                 static_cast<std::int32_t>(out.row * conv.stride_h - conv.pad_h),
                 static_cast<std::int32_t>(out.column * conv.stride_w - conv.pad_w),
                 static_cast<std::int32_t>(out.image),
                 static_cast<std::int32_t>(out.row),
                 static_cast<std::int32_t>(out.column)};
      }
      shared.pixels[i] = pixel;
    }
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kOutputs; i += kThreads) {
      if (first_output + i >= a.weight.group_outputs) continue;
      const std::int64_t output = group * a.weight.group_outputs + first_output + i;
      const ChannelEpilogue channel = load_epilogue(a.operands, output);
      const float values[kVectors] = {channel.scale, channel.bias, channel.slope, channel.shift, channel.pack_shift};
      SUBBIT_UNROLL
      for (int v = 0; v < kVectors; ++v) shared.channels[v][i] = values[v];
      if constexpr (Kind::kIsBits) {
        const std::int64_t signs = a.weight.groups * a.weight.blocks * a.weight.block_words;
        const auto* counts = static_cast<const std::int32_t*>(a.operands.product_weight) + signs;
        for (int tap = 0; tap <= a.weight.taps; ++tap) {
          shared.plus_of_tap[i][tap] = counts[output * (a.weight.taps + 1) + tap];
        }
      }
    }
  }

  struct Offset {
    std::int64_t row, column;
  };
  static SUBBIT_DEVICE Offset offset_of(const ProductArgs& a, int tap) {
    const ConvParams& conv = a.params.conv;
    const int row = a.weight.taps == kMaxTaps ? tap / 3 : 0, column = a.weight.taps == kMaxTaps ? tap % 3 : 0;
    return {row * conv.dilation_h, column * conv.dilation_w};
  }
  static SUBBIT_DEVICE bool is_inside(const ProductArgs& a, const TilePixel& pixel, const Offset& offset) {
    const std::int64_t row = pixel.row + offset.row, column = pixel.column + offset.column;
    return row >= 0 && row < a.params.conv.height && column >= 0 && column < a.params.conv.width;
  }

  // Starts the copies of a stage: [plane][step][pixel][64 bytes], and of bits then [8 outputs][step][16 lane].
  static SUBBIT_DEVICE void fill(const ProductArgs& a, Shared& shared, unsigned char* stage, int s, std::int64_t group,
                                 std::int64_t first_output) {
    const int thread = static_cast<int>(threadIdx.x), piece = thread % kPieces;
    constexpr int kRows = kThreads / kPieces;  // pixels that are filled at once
    const auto tap_slots = static_cast<std::uint32_t>(a.weight.tap_slots);
    SUBBIT_UNROLL
    for (int step = 0; step < Tile::kSteps; ++step) {
      const std::uint32_t slot = (static_cast<std::uint32_t>(s) * Tile::kSteps + step) * kPieces + piece;
      const std::uint32_t tap = slot / tap_slots, in_tap = slot - tap * tap_slots;
      const bool is_there = tap < static_cast<std::uint32_t>(a.weight.taps) && in_tap < a.x.tap_pieces;
      const Offset offset = offset_of(a, static_cast<int>(tap));
      const std::int64_t from_pixel = group * a.x.group + offset.row * a.x.h + offset.column * a.x.w +
                                      static_cast<std::int64_t>(in_tap) * Kind::kPieceBytes;
      SUBBIT_UNROLL
      for (int first = 0; first < Tile::kPixels; first += kRows) {
        const int row = first + thread / kPieces;
        if (Tile::kPixels % kRows != 0 && row >= Tile::kPixels) continue;
        const TilePixel& pixel = shared.pixels[row];
        const bool valid = is_there && is_inside(a, pixel, offset);
        const std::int64_t from =
            valid ? from_pixel + pixel.x_offset + pixel.row * a.x.h + pixel.column * a.x.w : 0;
        const int to = (step * Tile::kPixels + row) * kStepBytes + piece * Kind::kPieceBytes;
        SUBBIT_UNROLL
        for (int plane = 0; plane < Kind::kPlanes; ++plane) {
          copy_async<Kind::kPieceBytes>(stage + plane * kPlaneBytes + to, a.x.planes[plane] + from, valid);
        }
      }
    }
    if constexpr (Kind::kIsBits) {
      constexpr int kLaneBytes = 16;
      const auto* weight = static_cast<const unsigned char*>(a.operands.product_weight);
      unsigned char* to = stage + Kind::kPlanes * kPlaneBytes;
      for (int i = thread; i < kWeightBytes / kLaneBytes; i += kThreads) {
        const int lane = i % kWarpLanes, step = i / kWarpLanes % Tile::kSteps;
        const std::int64_t block = first_output / kFragmentOutputs + i / kWarpLanes / Tile::kSteps;
        const std::int64_t in_block = std::int64_t{s} * Tile::kSteps + step;
        const bool valid = block < a.weight.blocks && in_block < a.weight.steps;
        const std::int64_t from =
            valid ? (group * a.weight.blocks + block) * a.weight.block_words * 4 + (in_block * kWarpLanes + lane) * 16
                  : 0;
        copy_async<kLaneBytes>(to + i * kLaneBytes, weight + from, valid);
      }
    }
  }

  // Straight from global memory: a warp's words lie in a row, and only its lanes want them.
  static SUBBIT_DEVICE void load_signs(const ProductArgs& a, Signs& signs, int s, std::int64_t group,
                                       std::int64_t first_output, const Place& at) {
    if constexpr (!Kind::kIsBits) {
      const auto* weight = static_cast<const std::uint32_t*>(a.operands.product_weight);
      const std::int64_t first_block = first_output / kHalvesOutputs + at.n * (Tile::kN / 4);
      SUBBIT_UNROLL
      for (int i = 0; i < Tile::kSteps / Tile::kWarpsK; ++i) {
        const std::int64_t step = std::int64_t{s} * Tile::kSteps + i * Tile::kWarpsK + at.k;
        SUBBIT_UNROLL
        for (int j = 0; j < Tile::kN / 4; ++j) {
          const std::int64_t block = first_block + j;
          const bool valid = block < a.weight.blocks && step < a.weight.steps;
          signs[i][j] = valid ? __ldg(weight + (group * a.weight.blocks + block) * a.weight.block_words +
                                      step * kWarpLanes + at.lane)
                              : 0;
        }
      }
    }
  }

  struct Pieces {
    uint4 of_pixels[Tile::kM][2];  // pixels g and g + 8
  };
  static SUBBIT_DEVICE Pieces load_pieces(const unsigned char* plane, int step, const Place& at) {
    Pieces pieces;
    const unsigned char* from = plane + (step * Tile::kPixels + at.m * Tile::kM * 16) * kStepBytes + at.lane * 16;
    SUBBIT_UNROLL
    for (int m = 0; m < Tile::kM; ++m) {
      SUBBIT_UNROLL
      for (int half = 0; half < 2; ++half) {
        pieces.of_pixels[m][half] = *reinterpret_cast<const uint4*>(from + (m * 16 + half * 8) * kStepBytes);
      }
    }
    return pieces;
  }

  // What the first or the second product of a step takes.
  static SUBBIT_DEVICE FragmentA fragment(const uint4 (&of_pixels)[2], int product) {
    const uint4 &p = of_pixels[0], &q = of_pixels[1];
    return product == 0 ? FragmentA{{p.x, q.x, p.y, q.y}} : FragmentA{{p.z, q.z, p.w, q.w}};
  }

  static SUBBIT_DEVICE void multiply_bits(const ProductArgs& a, const unsigned char* stage, int s, Sums& sums,
                                          std::int32_t (&set_bits)[Tile::kM][2], const Place& at) {
    const unsigned char* weight = stage + Kind::kPlanes * kPlaneBytes;
    const auto words = static_cast<int>(a.weight.taps * a.weight.tap_slots);
    SUBBIT_UNROLL
    for (int i = 0; i < Tile::kSteps / Tile::kWarpsK; ++i) {
      const int step = i * Tile::kWarpsK + at.k, turn = s * (Tile::kSteps / Tile::kWarpsK) + i;
      const bool counts = turn % Tile::kWarpsN == at.n;  // warps that read the same pixels count them by turns
      // A step's word 2 t + i is of lane t's product i: with one word left there is nothing to the second product. So
      // 64 channels, 9 words, take 3 products and not 4.
      const int products = words - (s * Tile::kSteps + step) * kStepWords == 1 ? 1 : 2;
      const Pieces plus = load_pieces(stage, step, at);
      Pieces minus;
      if constexpr (Kind::kPlanes == 2) minus = load_pieces(stage + kPlaneBytes, step, at);
      SUBBIT_UNROLL
      for (int m = 0; m < Tile::kM; ++m) {
        SUBBIT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const uint4& p = plus.of_pixels[m][half];
          if constexpr (Kind::kPlanes == 2) {
            uint4& q = minus.of_pixels[m][half];
            if (counts) set_bits[m][half] += __popc(q.x) + __popc(q.y) + __popc(q.z) + __popc(q.w);
            q = make_uint4(q.x & ~p.x, q.y & ~p.y, q.z & ~p.z, q.w & ~p.w);
          } else {
            if (counts) set_bits[m][half] += __popc(p.x) + __popc(p.y) + __popc(p.z) + __popc(p.w);
          }
        }
      }
      SUBBIT_UNROLL
      for (int n = 0; n < Tile::kN; ++n) {
        const int block = at.n * Tile::kN + n;
        const uint4 w =
            *reinterpret_cast<const uint4*>(weight + (block * Tile::kSteps + step) * kWarpLanes * 16 + at.lane * 16);
        SUBBIT_UNROLL
        for (int product = 0; product < 2; ++product) {
          if (product >= products) continue;
          const FragmentB b = product == 0 ? FragmentB{{w.x, w.y}} : FragmentB{{w.z, w.w}};
          SUBBIT_UNROLL
          for (int m = 0; m < Tile::kM; ++m) {
            mma_and_popc(sums[m][n], fragment(plus.of_pixels[m], product), b);
            if constexpr (Kind::kPlanes == 2) {
              mma_and_popc(sums[m][n], fragment(minus.of_pixels[m], product), FragmentB{{~b.r[0], ~b.r[1]}});
            }
          }
        }
      }
    }
  }

  // Two halves of +-1: of bits `bit` and `bit` + 16, which become their signs.
  static SUBBIT_DEVICE std::uint32_t ones(std::uint32_t signs, int bit) {
    return (signs << (15 - bit) & 0x80008000u) | Kind::kOnes;
  }

  static SUBBIT_DEVICE void multiply_halves(const unsigned char* stage, Sums& sums, const Signs& signs,
                                            const Place& at) {
    Sums of_stage = {};
    Sums& into = Kind::kSumsStages ? of_stage : sums;
    SUBBIT_UNROLL
    for (int part = 0; part < Kind::kPlanes; ++part) {
      SUBBIT_UNROLL
      for (int i = 0; i < Tile::kSteps / Tile::kWarpsK; ++i) {
        const Pieces pieces = load_pieces(stage + part * kPlaneBytes, i * Tile::kWarpsK + at.k, at);
        SUBBIT_UNROLL
        for (int product = 0; product < 2; ++product) {
          SUBBIT_UNROLL
          for (int n = 0; n < Tile::kN; ++n) {
            const int bit = n % 4 * 4 + product * 2;
            const FragmentB b{{ones(signs[i][n / 4], bit), ones(signs[i][n / 4], bit + 1)}};
            SUBBIT_UNROLL
            for (int m = 0; m < Tile::kM; ++m) {
              mma(into[m][n], fragment(pieces.of_pixels[m], product), b, typename Kind::Half{});
            }
          }
        }
      }
    }
    if constexpr (Kind::kSumsStages) {
      SUBBIT_UNROLL
      for (int m = 0; m < Tile::kM; ++m) {
        SUBBIT_UNROLL
        for (int n = 0; n < Tile::kN; ++n) {
          SUBBIT_UNROLL
          for (int i = 0; i < 4; ++i) sums[m][n][i] = __fadd_rn(sums[m][n][i], of_stage[m][n][i]);
        }
      }
    }
  }

  // The counts of the four lanes that share a pixel, put where every warp finds them.
  static SUBBIT_DEVICE void share_set_bits(Shared& shared, const std::int32_t (&set_bits)[Tile::kM][2],
                                           const Place& at) {
    SUBBIT_UNROLL
    for (int m = 0; m < Tile::kM; ++m) {
      SUBBIT_UNROLL
      for (int half = 0; half < 2; ++half) {
        std::int32_t count = set_bits[m][half];
        count += __shfl_xor_sync(~0u, count, 1);
        count += __shfl_xor_sync(~0u, count, 2);
        if (at.t == 0) shared.set_bits[at.n * Tile::kWarpsK + at.k][row_of(m, half, at)] = count;
      }
    }
  }

  static SUBBIT_DEVICE int row_of(int m, int half, const Place& at) {
    return (at.m * Tile::kM + m) * 16 + half * 8 + at.g;
  }

  // The first warp's sums become those of all warps along K, added in their order.
  static SUBBIT_DEVICE void add_warps(Shared& shared, Sums& sums, const Place& at) {
    constexpr int kWarps = Tile::kWarpsM * Tile::kWarpsN, kSums = Tile::kM * Tile::kN * 4;
    static_assert(sizeof(Sum) * kSums * kThreads <= sizeof(shared.stages));
    auto* all = reinterpret_cast<Sum*>(shared.stages);  // [warp along K][warp][sum][lane]
    const int warp = at.n * Tile::kWarpsM + at.m;
    wait_for_copies<0>();
    __syncthreads();  // nobody reads a stage any more
    SUBBIT_UNROLL
    for (int i = 0; i < kSums; ++i) {
      all[((at.k * kWarps + warp) * kSums + i) * kWarpLanes + at.lane] = sums[i / 4 / Tile::kN][i / 4 % Tile::kN][i % 4];
    }
    __syncthreads();
    if (at.k != 0) return;
    SUBBIT_UNROLL
    for (int i = 0; i < kSums; ++i) {
      Sum sum = all[(warp * kSums + i) * kWarpLanes + at.lane];
      for (int k = 1; k < Tile::kWarpsK; ++k) {
        sum = sum + all[((k * kWarps + warp) * kSums + i) * kWarpLanes + at.lane];
      }
      sums[i / 4 / Tile::kN][i / 4 % Tile::kN][i % 4] = sum;
    }
  }

  // What of a pixel the sums of its bits need.
  struct PixelBits {
    std::int32_t set_bits, inside;
    std::uint32_t taps_outside;
  };
  static SUBBIT_DEVICE PixelBits bits_of(const ProductArgs& a, const Shared& shared, int row) {
    PixelBits bits{0, 0, 0};
    for (int i = 0; i < kCounters; ++i) bits.set_bits += shared.set_bits[i][row];
    if constexpr (Kind::kPlanes == 1) {
      for (int tap = 0; tap < a.weight.taps; ++tap) {
        const bool inside = is_inside(a, shared.pixels[row], offset_of(a, tap));
        bits.inside += inside;
        bits.taps_outside |= std::uint32_t{!inside} << tap;
      }
      bits.inside *= static_cast<std::int32_t>(a.weight.group_channels);
    }
    return bits;
  }

  static SUBBIT_DEVICE float sum_of_bits(const ProductArgs& a, const Shared& shared, std::int32_t count,
                                         const PixelBits& pixel, int column) {
    if constexpr (Kind::kPlanes == 2) return static_cast<float>(2 * count - pixel.set_bits);
    std::int32_t plus = shared.plus_of_tap[column][a.weight.taps];
    for (std::uint32_t left = pixel.taps_outside, tap = 0; left != 0; left >>= 1, ++tap) {
      if (left & 1) plus -= shared.plus_of_tap[column][tap];
    }
    return static_cast<float>(4 * count - 2 * pixel.set_bits - 2 * plus + pixel.inside);
  }

  static SUBBIT_DEVICE void finish_tile(const ProductArgs& a, const Shared& shared, const Sums& sums,
                                        std::int64_t group, std::int64_t first_output, const Place& at) {
    const ConvParams& conv = a.params.conv;
    const CudaOperands& o = a.operands;
    const std::int64_t first = group * a.weight.group_outputs + first_output;  // output of the tile's column 0
    // Groups end with whole words; behind a single one's last output there may be half a word of zeros.
    const std::int64_t word_end = a.weight.groups == 1 ? a.y_words : (group + 1) * a.weight.group_outputs / 32;
    SUBBIT_UNROLL
    for (int m = 0; m < Tile::kM; ++m) {
      SUBBIT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = row_of(m, half, at);
        const TilePixel& pixel = shared.pixels[row];
        const std::int64_t image = pixel.image, out_row = pixel.out_row, out_column = pixel.out_column;
        const std::int64_t y_at = image * conv.y_n + out_row * conv.y_h + out_column * conv.y_w;
        const std::int64_t residual_at =
            image * conv.residual_n + out_row * conv.residual_h + out_column * conv.residual_w;
        PixelBits bits{};
        if constexpr (Kind::kIsBits) bits = bits_of(a, shared, row);
        std::uint32_t plus = 0, nonzero = 0;
        SUBBIT_UNROLL
        for (int n = 0; n < Tile::kN; ++n) {
          const int column = (at.n * Tile::kN + n) * kFragmentOutputs + 2 * at.t;
          const bool is_there[2] = {image >= 0 && first_output + column < a.weight.group_outputs,
                                    image >= 0 && first_output + column + 1 < a.weight.group_outputs};
          float v[2] = {0.0f, 0.0f};
          SUBBIT_UNROLL
          for (int e = 0; e < 2; ++e) {
            if (!is_there[e]) continue;
            const ChannelEpilogue channel{shared.channels[0][column + e], shared.channels[1][column + e],
                                          shared.channels[2][column + e], shared.channels[3][column + e],
                                          shared.channels[4][column + e]};
            float sum = 0.0f;
            if constexpr (Kind::kIsBits) {
              sum = sum_of_bits(a, shared, sums[m][n][half * 2 + e], bits, column + e);
            } else {
              sum = sums[m][n][half * 2 + e];
            }
            const std::int64_t output = first + column + e;
            const float residual =
                o.residual ? load_element(o.residual, a.params.element, residual_at + output * conv.residual_c) : 0.0f;
            v[e] = finish(sum, channel, conv.activation, residual);
            if (o.y_plus) {
              const SignBits signs = sign_bits(v[e], channel.pack_shift, o.y_nonzero == nullptr);
              const int bit = n % 4 * kFragmentOutputs + 2 * at.t + e;
              plus |= std::uint32_t{signs.plus} << bit;
              nonzero |= std::uint32_t{signs.nonzero} << bit;
            }
          }
          if (o.y) {
            const std::int64_t to = y_at + (first + column) * conv.y_c;
            if (a.stores_pairs && is_there[1]) {
              store_pair(o.y, a.params.element, to, v[0], v[1]);
            } else {
              if (is_there[0]) store_element(o.y, a.params.element, to, v[0]);
              if (is_there[1]) store_element(o.y, a.params.element, to + conv.y_c, v[1]);
            }
          }
          if (o.y_plus && n % 4 == 3) {
            const std::int64_t pixel_number = (image * conv.out_height + out_row) * conv.out_width + out_column;
            const std::int64_t word = (first + (at.n * Tile::kN + n - 3) * kFragmentOutputs) / 32;
            const bool is_here = image >= 0 && at.t == 0 && word < word_end;
            store_word(o.y_plus, pixel_number * a.y_words + word, plus, is_here);
            if (o.y_nonzero) store_word(o.y_nonzero, pixel_number * a.y_words + word, nonzero, is_here);
            plus = nonzero = 0;
          }
        }
      }
    }
  }

  // Half a word of packed results, of which each of four lanes has some bits. All lanes of the warp call it.
  static SUBBIT_DEVICE void store_word(std::uint64_t* to, std::int64_t i, std::uint32_t bits, bool is_here) {
    bits |= __shfl_xor_sync(~0u, bits, 1);
    bits |= __shfl_xor_sync(~0u, bits, 2);
    if (is_here) reinterpret_cast<std::uint32_t*>(to)[i] = bits;
  }
};

}  // namespace subbit
