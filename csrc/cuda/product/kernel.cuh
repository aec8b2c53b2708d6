// The tensor cores' route: the convolution as one product of matrices, pixels by K times K by outputs, K being taps
// times channels (weight.h has its order). The patches of x are never written out: a block gathers those of
// its tile of pixels step by step.
//
// The weight is the left matrix and x the right one: then 16 bytes of a pixel are the registers of two products as they
// come, without a move, and the weight's registers are made one by one anyway.
//
// Shared memory. A step of x is [pixel][64 bytes], as it comes: lane (g, t) of a warp reads the 16 bytes t of pixel g
// of eight, which lie at 64 g + 16 t = 16 lane. So the lanes of each quarter of a warp, which are served together, read
// 128 bytes in a row, every bank once: free of conflicts without a swizzle; so are the 8 and 16 bytes per thread that
// copies write in a row. (K may have any order as long as x and the weight have the same, so 16 bytes hold what a lane
// needs for two products, and no transposing load is needed.) Weights of bits lie in the order of lanes: the same.
//
// What bounds it, by arithmetic for an A100 (a multiprocessor does 1024 float16 multiply-adds per clock, 64 logical
// operations and 128 bytes of shared memory): the large tile of float16, 128 outputs x 128 pixels, four warps of 64 x
// 64. A step is 64 products of matrices per warp, 512 clocks. Its signs are decoded by 2 x 32 operations, 128 clocks of
// another pipe; x is read by 8 loads of 512 bytes per warp, 128 clocks for the four. So the tensor cores are the bound;
// the second-level cache gives 8 KiB per step, 16 bytes per clock and multiprocessor. Bits: 0.5 to 0.54 products per
// clock, 128 x 128 x 512 in 490 clocks, which reads 16 KiB twice, 256 clocks: tensor cores again, and with float
// activations around it the device's memory. Int8, as on an H100 (4096 multiply-adds per clock, 62 % of them by
// mma.sync): a step of 128 x 128 x 64 takes 413 clocks, in which the signs take three operations per register, two of
// one pipe (128 clocks) and one of another (64), and x is read as float16 is. None of this is measured yet.
//
// The small tile, 32 outputs x 16 pixels, is for calls that the large one would leave most of the device idle in: its
// four warps take every fourth step each, and their sums are added in the order of the warps. So the order of
// additions depends on the tile, and the tile on sizes alone, not on the device: equal calls give equal bits on every
// device that runs the same instructions (Hopper's wgmma adds floats up in another order; sums of bits are exact).
//
// Sums go through shared memory to the epilogue, so that lanes lie along outputs or along pixels, as y has them, and so
// that the epilogue's code is there once and not for each of 128 sums. Their rows are 32 k + 5 floats apart: lanes
// along pixels read at odd strides, every bank once; lanes (g, t) of fragments write at 10 t + g, no bank more than
// twice.
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

#include "cuda/common/copy_async.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/platform.h"
#include "cuda/common/start.cuh"
#include "cuda/common/tile_epilogue.cuh"
#include "cuda/product/kinds.cuh"
#include "cuda/product/pixels.cuh"
#include "cuda/product/weight.h"

namespace subbit {

template <class Kind, class Tile>
struct Product {
  using Sum = typename Kind::Sum;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kBlocksPerMultiprocessor = Tile::kWarpsK > 1 ? 4 : 2;
  static constexpr int kPieces = kStepBytes / Kind::kPieceBytes;
  static constexpr int kPlaneBytes = Tile::kSteps * Tile::kPixels * kStepBytes;
  static constexpr int kWeightBytes = Kind::kIsBits ? Tile::kSteps * Tile::kOutputs * kStepBytes : 0;
  static constexpr int kStageBytes = Kind::kPlanes * kPlaneBytes + kWeightBytes;
  static constexpr int kCounters = Tile::kWarpsM * Tile::kWarpsK * 4;  // of a pixel's bits
  static constexpr int kWarpSteps = Tile::kSteps / Tile::kWarpsK;
  // The sums of half the fragments' pixels at a time.
  static constexpr int kRounds = 2, kRoundN = Tile::kN / kRounds, kRoundPixels = Tile::kPixels / kRounds;
  static constexpr int kSumRow = Tile::kOutputs + 5;

  using Epilogue = TileEpilogue<Tile::kOutputs, kThreads>;
  using Outputs = typename Epilogue::Outputs;

  // What of a pixel the sums of bits need.
  struct PixelBits {
    std::int32_t offset;         // is added to every sum
    std::uint32_t taps_outside;  // a bit each
  };

  struct Shared {
    union {
      alignas(128) unsigned char stages[Tile::kStages][kStageBytes];
      Sum sums[Tile::kWarpsK][kRoundPixels][kSumRow];
    };
    TilePixel pixels[Tile::kPixels];
    typename Epilogue::Channels channels;
    std::int32_t plus_of_tap[Kind::kIsBits ? Tile::kOutputs : 1][kMaxTaps + 1];
    std::int32_t set_bits[Kind::kIsBits ? kCounters : 1][Tile::kPixels];
    PixelBits bits[Kind::kIsBits ? Tile::kPixels : 1];
  };
  static constexpr std::size_t kSharedBytes = sizeof(Shared);
  static_assert(kSharedBytes <= 99 << 10, "what a block may have on sm_86 and sm_89");

  // Which warp of the tile this is, and which lane (g, t).
  struct Place {
    int m, n, k, g, t, lane;
  };

  using Sums = Sum[Tile::kM][Tile::kN][4];
  // The signs of numbers of a stage that this warp takes.
  static constexpr int kSignsM = Kind::kSignsM, kSignWords = Tile::kM / kSignsM;
  using Signs = std::uint32_t[kWarpSteps][kSignWords];

  static SUBBIT_DEVICE Place place() {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpLanes, lane = thread % kWarpLanes;
    return {warp % Tile::kWarpsM,
            warp / Tile::kWarpsM % Tile::kWarpsN,
            warp / (Tile::kWarpsM * Tile::kWarpsN),
            lane / 4,
            lane % 4,
            lane};
  }

  static SUBBIT_DEVICE void run(const ProductArgs& a) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    const TileStart first = tile_start<Tile::kOutputs, Tile::kPixels>(a);
    const std::int64_t group = first.group, first_output = first.output;
    const Outputs outputs{group, a.weight.group_outputs, first_output};
    const Place at = place();
    set_up_pixels<Tile::kPixels, kThreads>(a, shared.pixels, first.pixel);
    Epilogue::load(a.operands, outputs, shared.channels);
    if constexpr (Kind::kIsBits) load_counts(a, shared, outputs);
    __syncthreads();

    const int stages = static_cast<int>((a.weight.steps + Tile::kSteps - 1) / Tile::kSteps);
    SUBBIT_UNROLL
    for (int s = 0; s < Tile::kStages - 1; ++s) {
      if (s < stages) fill(a, shared, shared.stages[s], s, group, first_output);
      commit_copies();
    }
    Sums sums = {};
    std::int32_t set_bits[Tile::kN] = {};
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
        for (int i = 0; i < kWarpSteps; ++i) {
          SUBBIT_UNROLL
          for (int j = 0; j < kSignWords; ++j) signs[i][j] = next_signs[i][j];
        }
        if (s + 1 < stages) load_signs(a, next_signs, s + 1, group, first_output, at);
        multiply_numbers(shared.stages[s % Tile::kStages], sums, signs, at);
      }
    }
    if constexpr (Kind::kIsBits) share_set_bits(shared, set_bits, at);
    wait_for_copies<0>();
    SUBBIT_UNROLL
    for (int round = 0; round < kRounds; ++round) {
      __syncthreads();  // nobody reads a stage, or the sums of the last round, any more
      share_sums(shared, sums, round, at);
      if constexpr (Kind::kIsBits) {
        if (round == 0) make_pixel_bits(a, shared);
      }
      __syncthreads();
      finish_round(a, shared, round, outputs);
    }
  }

  // How many weights of each tap, and of all, are +1.
  static SUBBIT_DEVICE void load_counts(const ProductArgs& a, Shared& shared, const Outputs& outputs) {
    const std::int64_t signs = a.weight.groups * a.weight.blocks * a.weight.block_words;
    const auto* counts = static_cast<const std::int32_t*>(a.operands.prepared_weight) + signs;
    SUBBIT_UNROLL
    for (int first = 0; first < Tile::kOutputs; first += kThreads) {
      const int i = first + static_cast<int>(threadIdx.x);
      if ((Tile::kOutputs % kThreads != 0 && i >= Tile::kOutputs) || !outputs.has(i)) continue;
      for (int tap = 0; tap <= a.weight.taps; ++tap) {
        shared.plus_of_tap[i][tap] = counts[outputs.channel(i) * (a.weight.taps + 1) + tap];
      }
    }
  }

  // Starts the copies of a stage: [plane][step][pixel][64 bytes], and of bits then [16 outputs][step][product][lane].
  static SUBBIT_DEVICE void fill(const ProductArgs& a, Shared& shared, unsigned char* stage, int s, std::int64_t group,
                                 std::int64_t first_output) {
    const int thread = static_cast<int>(threadIdx.x), piece = thread % kPieces;
    constexpr int kRows = kThreads / kPieces;  // pixels that are filled at once
    PieceOfTap from_pixel[Tile::kSteps];
    SUBBIT_UNROLL
    for (int step = 0; step < Tile::kSteps; ++step) {
      const std::uint32_t slot = (static_cast<std::uint32_t>(s) * Tile::kSteps + step) * kPieces + piece;
      from_pixel[step] = piece_of_tap<Kind::kPieceBytes>(a, slot, group);
    }
    SUBBIT_UNROLL
    for (int first = 0; first < Tile::kPixels; first += kRows) {
      const int row = first + thread / kPieces;
      if (Tile::kPixels % kRows != 0 && row >= Tile::kPixels) continue;
      const TilePixel pixel = shared.pixels[row];
      SUBBIT_UNROLL
      for (int step = 0; step < Tile::kSteps; ++step) {
        const bool valid = from_pixel[step].is_there & is_inside(a, pixel, from_pixel[step].offset);
        const std::int64_t from = valid ? from_pixel[step].from + pixel.x_offset : 0;
        const int to = (step * Tile::kPixels + row) * kStepBytes + piece * Kind::kPieceBytes;
        SUBBIT_UNROLL
        for (int plane = 0; plane < Kind::kPlanes; ++plane) {
          copy_async<Kind::kPieceBytes>(stage + plane * kPlaneBytes + to, a.x.planes[plane] + from, valid);
        }
      }
    }
    if constexpr (Kind::kIsBits) {
      constexpr int kLaneBytes = 16, kStepLanes = 2 * kWarpLanes;  // of sixteen outputs
      const auto* weight = static_cast<const unsigned char*>(a.operands.prepared_weight);
      unsigned char* to = stage + Kind::kPlanes * kPlaneBytes;
      SUBBIT_UNROLL
      for (int first = 0; first < kWeightBytes / kLaneBytes; first += kThreads) {
        const int i = first + thread, lane = i % kStepLanes, step = i / kStepLanes % Tile::kSteps;
        const std::int64_t block = first_output / kFragmentOutputs + i / kStepLanes / Tile::kSteps;
        const std::int64_t in_block = std::int64_t{s} * Tile::kSteps + step;
        const bool valid = block < a.weight.blocks && in_block < a.weight.steps;
        const std::int64_t from =
            (group * a.weight.blocks + block) * a.weight.block_words * 4 + (in_block * kStepLanes + lane) * kLaneBytes;
        copy_async<kLaneBytes>(to + i * kLaneBytes, weight + (valid ? from : 0), valid);
      }
    }
  }

  // Straight from global memory: a warp's words lie in a row, and only its lanes want them.
  static SUBBIT_DEVICE void load_signs(const ProductArgs& a, Signs& signs, int s, std::int64_t group,
                                       std::int64_t first_output, const Place& at) {
    if constexpr (!Kind::kIsBits) {
      const auto* weight = static_cast<const std::uint32_t*>(a.operands.prepared_weight);
      const std::int64_t first_block = first_output / (kFragmentOutputs * kSignsM) + at.m * kSignWords;
      SUBBIT_UNROLL
      for (int i = 0; i < kWarpSteps; ++i) {
        const std::int64_t step = std::int64_t{s} * Tile::kSteps + i * Tile::kWarpsK + at.k;
        SUBBIT_UNROLL
        for (int j = 0; j < kSignWords; ++j) {
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
    uint4 of_pixels[Tile::kN];  // pixel g of each eight
  };
  static SUBBIT_DEVICE Pieces load_pieces(const unsigned char* plane, int step, const Place& at) {
    Pieces pieces;
    const unsigned char* from =
        plane + (step * Tile::kPixels + at.n * Tile::kN * kFragmentPixels) * kStepBytes + at.lane * 16;
    SUBBIT_UNROLL
    for (int n = 0; n < Tile::kN; ++n) {
      pieces.of_pixels[n] = *reinterpret_cast<const uint4*>(from + n * kFragmentPixels * kStepBytes);
    }
    return pieces;
  }

  // What the first or the second product of a step takes.
  static SUBBIT_DEVICE FragmentB fragment(const uint4& piece, int product) {
    return product == 0 ? FragmentB{{piece.x, piece.y}} : FragmentB{{piece.z, piece.w}};
  }

  static SUBBIT_DEVICE void multiply_bits(const ProductArgs& a, const unsigned char* stage, int s, Sums& sums,
                                          std::int32_t (&set_bits)[Tile::kN], const Place& at) {
    const unsigned char* weight = stage + Kind::kPlanes * kPlaneBytes;
    const auto words = static_cast<int>(a.weight.taps * a.weight.tap_slots);
    SUBBIT_UNROLL
    for (int i = 0; i < kWarpSteps; ++i) {
      const int step = i * Tile::kWarpsK + at.k, turn = s * kWarpSteps + i;
      const bool counts = turn % Tile::kWarpsM == at.m;  // warps that read the same pixels count them by turns
      // A step's word 2 t + i is of lane t's product i: with one word left there is nothing to the second product. So
      // 64 channels, 9 words, take 3 products and not 4.
      const int products = words - (s * Tile::kSteps + step) * kStepWords == 1 ? 1 : 2;
      const Pieces plus = load_pieces(stage, step, at);
      Pieces minus;
      if constexpr (Kind::kPlanes == 2) minus = load_pieces(stage + kPlaneBytes, step, at);
      SUBBIT_UNROLL
      for (int n = 0; n < Tile::kN; ++n) {
        const uint4& p = plus.of_pixels[n];
        if constexpr (Kind::kPlanes == 2) {
          uint4& q = minus.of_pixels[n];
          if (counts) set_bits[n] += __popc(q.x) + __popc(q.y) + __popc(q.z) + __popc(q.w);
          q = make_uint4(q.x & ~p.x, q.y & ~p.y, q.z & ~p.z, q.w & ~p.w);
        } else {
          if (counts) set_bits[n] += __popc(p.x) + __popc(p.y) + __popc(p.z) + __popc(p.w);
        }
      }
      SUBBIT_UNROLL
      for (int product = 0; product < 2; ++product) {
        if (product >= products) continue;
        SUBBIT_UNROLL
        for (int m = 0; m < Tile::kM; ++m) {
          const int block = at.m * Tile::kM + m;
          const uint4 w = *reinterpret_cast<const uint4*>(
              weight + (((block * Tile::kSteps + step) * 2 + product) * kWarpLanes + at.lane) * 16);
          SUBBIT_UNROLL
          for (int n = 0; n < Tile::kN; ++n) {
            mma_and_popc(sums[m][n], FragmentA{{w.x, w.y, w.z, w.w}}, fragment(plus.of_pixels[n], product));
          }
          if constexpr (Kind::kPlanes == 2) {
            SUBBIT_UNROLL
            for (int n = 0; n < Tile::kN; ++n) {
              mma_and_popc(sums[m][n], FragmentA{{~w.x, ~w.y, ~w.z, ~w.w}}, fragment(minus.of_pixels[n], product));
            }
          }
        }
      }
    }
  }

  static SUBBIT_DEVICE void multiply_numbers(const unsigned char* stage, Sums& sums, const Signs& signs,
                                             const Place& at) {
    Sums of_stage = {};
    Sums& into = Kind::kSumsStages ? of_stage : sums;
    SUBBIT_UNROLL
    for (int part = 0; part < Kind::kPlanes; ++part) {
      SUBBIT_UNROLL
      for (int i = 0; i < kWarpSteps; ++i) {
        const Pieces pieces = load_pieces(stage + part * kPlaneBytes, i * Tile::kWarpsK + at.k, at);
        SUBBIT_UNROLL
        for (int product = 0; product < 2; ++product) {
          SUBBIT_UNROLL
          for (int m = 0; m < Tile::kM; ++m) {
            FragmentA w;
            SUBBIT_UNROLL
            for (int r = 0; r < 4; ++r) {
              w.r[r] = Kind::ones(signs[i][m / kSignsM], m % kSignsM * 8 + product * 4 + r);
            }
            SUBBIT_UNROLL
            for (int n = 0; n < Tile::kN; ++n) {
              mma(into[m][n], w, fragment(pieces.of_pixels[n], product), typename Kind::Number{});
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

  // Puts the lanes' counts where all find them. (No shuffles: they need converged warps, which ptxas cannot see here.)
  static SUBBIT_DEVICE void share_set_bits(Shared& shared, const std::int32_t (&set_bits)[Tile::kN], const Place& at) {
    SUBBIT_UNROLL
    for (int n = 0; n < Tile::kN; ++n) {
      const int pixel = (at.n * Tile::kN + n) * kFragmentPixels + at.g;
      shared.set_bits[(at.m * Tile::kWarpsK + at.k) * 4 + at.t][pixel] = set_bits[n];
    }
  }

  static SUBBIT_DEVICE void make_pixel_bits(const ProductArgs& a, Shared& shared) {
    SUBBIT_UNROLL
    for (int first = 0; first < Tile::kPixels; first += kThreads) {
      const int pixel = first + static_cast<int>(threadIdx.x);
      if (Tile::kPixels % kThreads != 0 && pixel >= Tile::kPixels) continue;
      std::int32_t set_bits = 0;
      SUBBIT_UNROLL
      for (int i = 0; i < kCounters; ++i) set_bits += shared.set_bits[i][pixel];
      PixelBits bits{-set_bits, 0};
      if constexpr (Kind::kPlanes == 1) {
        std::int32_t inside = 0;
        for (int tap = 0; tap < a.weight.taps; ++tap) {
          const bool is_in = is_inside(a, shared.pixels[pixel], offset_of(a, tap));
          inside += is_in;
          bits.taps_outside |= std::uint32_t{!is_in} << tap;
        }
        bits.offset = inside * static_cast<std::int32_t>(a.weight.group_channels) - 2 * set_bits;
      }
      shared.bits[pixel] = bits;
    }
  }

  static SUBBIT_DEVICE void share_sums(Shared& shared, const Sums& sums, int round, const Place& at) {
    SUBBIT_UNROLL
    for (int m = 0; m < Tile::kM; ++m) {
      SUBBIT_UNROLL
      for (int n = 0; n < kRoundN; ++n) {
        share_fragment(shared.sums[at.k], (at.n * kRoundN + n) * kFragmentPixels,
                       (at.m * Tile::kM + m) * kFragmentOutputs, at.g, at.t, sums[m][round * kRoundN + n]);
      }
    }
  }

  static SUBBIT_DEVICE float sum_of_bits(const ProductArgs& a, const Shared& shared, std::int32_t count, int pixel,
                                         int output) {
    const PixelBits bits = shared.bits[pixel];
    if constexpr (Kind::kPlanes == 2) return static_cast<float>(2 * count + bits.offset);
    std::int32_t plus = shared.plus_of_tap[output][a.weight.taps];
    std::uint32_t left = bits.taps_outside;
    for (int tap = 0; left != 0; ++tap, left >>= 1) {
      if (left & 1) plus -= shared.plus_of_tap[output][tap];
    }
    return static_cast<float>(4 * count - 2 * plus + bits.offset);
  }

  static SUBBIT_DEVICE void finish_round(const ProductArgs& a, const Shared& shared, int round,
                                         const Outputs& outputs) {
    const auto pixel_of = [&](int row) {
      constexpr int kRoundWarpPixels = kRoundN * kFragmentPixels;
      return (row / kRoundWarpPixels * kRounds + round) * kRoundWarpPixels + row % kRoundWarpPixels;
    };
    const auto sum_of = [&](int row, int output) {
      Sum all = shared.sums[0][row][output];
      SUBBIT_UNROLL
      for (int k = 1; k < Tile::kWarpsK; ++k) all = all + shared.sums[k][row][output];
      if constexpr (Kind::kIsBits) {
        return sum_of_bits(a, shared, all, pixel_of(row), output);
      } else {
        return static_cast<float>(all);
      }
    };
    Epilogue::template finish<kRoundPixels>(
        a.params, a.operands, a.epilogue, outputs, shared.channels,
        [&](int row) { return shared.pixels[pixel_of(row)].to; }, sum_of);
  }
};

}  // namespace subbit
