// The product of float16 and bfloat16 on Hopper, by wgmma (common/wgmma.cuh), which alone reaches all of its tensor
// cores. Semantics, prepared weight and tiles are kernel.cuh's, so which tile a call takes does not depend on the
// device.
//
// A block is two warpgroups of 64 outputs each. A *stage* is two steps of K (weight.h), 64 numbers: x as
// [pixel][128 bytes], swizzled, which the tensor cores read by themselves; the weight's fragments are made in
// registers.
//
// The weight's words are those of mma.sync, though there a lane wants 8 numbers in a row (K has any order) and here the
// hardware reads x in its own: of 8 numbers in a row, a piece, lane (g, t) wants numbers 2 t and 2 t + 1. Word t' of
// outputs g has piece t' with number 4 s + 2 (r / 2) + e in bit 16 e + 8 h + 4 s + r, so numbers 2 t + e of outputs
// 16 h + 8 i + g are its bits 16 e + 8 h + 2 t + i. A lane thus reads the words of all four lanes of its g, 16 bytes in
// a row; each is two registers: `word << (15 - 8 h - 2 t - i) & 0x80008000 | 0x3c003c00`.
//
// What bounds it, by arithmetic for an H100 (a multiprocessor does 2048 float16 multiply-adds per clock, 64 logical
// operations and 128 bytes of shared memory). A stage of a tile of 128 outputs x 128 pixels is 512 clocks of the tensor
// cores. They read x for both warpgroups, 32 KiB, 256 clocks; copies write 16 KiB, 128 clocks: three quarters of what
// shared memory gives. Its signs are decoded by 8 warps x 16 registers x 2 operations, 128 clocks of another pipe. 16
// KiB a stage from the second-level cache are 32 bytes per clock and multiprocessor: if it gives some 5.5 TB/s, 24
// bytes, as is assumed here, that is the bound, three quarters of the tensor cores' rate; only more outputs per block
// would move it. float32: three times the products for three times the bytes, with half the pixels; the same shares.
// None of this is measured yet.
//
// Two blocks per multiprocessor (128 registers per thread, 71 or 77 KiB each), so that one multiplies while the other
// waits at a barrier, adds up a stage or is in its epilogue. 128 pixels for float16 and not 256, whose sums alone would
// be 128 registers.
//
// Sums are added up as NumbersKind says, with k = 64 numbers per stage; that wgmma rounds no worse than mma.sync is
// assumed.
//
// The stages. Copies of stage s + kAhead are started while the products of stage s go on, into the place of a stage
// whose products every warpgroup has waited for before the barrier of stage s: of float16, whose products of the last
// stage may still go on at a barrier, that is stage s - 2; of sums of stages, which are waited for each time, s - 1.
#pragma once

#include <cstdint>

#include "cuda/common/wgmma.cuh"
#include "cuda/product/wgmma_tile.cuh"

namespace subbit {

template <class Kind, class Tile>
struct WgmmaProduct {
  static constexpr int kThreads = Tile::kOutputs / kWarpgroupOutputs * kWarpgroupThreads;
  static constexpr int kBlocksPerMultiprocessor = 2;
  static constexpr int kPieces = kSwizzleBytes / Kind::kPieceBytes, kSteps = kSwizzleBytes / kStepBytes;
  static constexpr int kSlices = kSwizzleBytes / 2 / kSliceNumbers, kSliceBytes = kSliceNumbers * 2;
  static constexpr int kPlaneBytes = Tile::kPixels * kSwizzleBytes, kStageBytes = Kind::kPlanes * kPlaneBytes;
  static constexpr int kAhead = Tile::kStages - (Kind::kSumsStages ? 1 : 2);
  static constexpr int kFragments = Tile::kPixels / kFragmentPixels;
  // The sums of half the pixels at a time.
  static constexpr int kRounds = 2, kRoundFragments = kFragments / kRounds, kRoundPixels = Tile::kPixels / kRounds;
  static constexpr int kSumRow = Tile::kOutputs + 5;  // as in kernel.cuh
  static_assert(Kind::kPieceBytes == kSwizzlePieceBytes && kPlaneBytes % kSwizzleAlignment == 0);

  using Epilogue = TileEpilogue<Tile::kOutputs, kThreads>;

  struct Shared {
    union {
      alignas(kSwizzleAlignment) unsigned char stages[Tile::kStages][kStageBytes];
      float sums[kRoundPixels][kSumRow];
    };
    TilePixel pixels[Tile::kPixels];
    typename Epilogue::Channels channels;
  };
  static constexpr std::size_t kSharedBytes = sizeof(Shared);
  static_assert(2 * (kSharedBytes + 1024) <= 228 << 10, "what the blocks of a multiprocessor have in all");

  // Which warp this is, and which lane (g, t); and how far a word of signs is shifted left for rows g of its fragment.
  struct Place {
    int warp, g, t, shift;
  };

  using Sums = float[kFragments][4];
  using Signs = uint4[kSteps];  // of a stage
  using Fragments = FragmentA[kSlices];

  static SUBBIT_DEVICE Place place() {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpLanes, lane = thread % kWarpLanes;
    return {warp, lane / 4, lane % 4, 15 - warp % 2 * 8 - lane % 4 * 2};
  }

  static SUBBIT_DEVICE void run(const ProductArgs& a) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    const TileStart start = tile_start<Tile::kOutputs, Tile::kPixels>(a);
    const typename Epilogue::Outputs outputs{start.group, a.weight.group_outputs, start.output};
    const Place at = place();
    set_up_pixels<Tile::kPixels, kThreads>(a, shared.pixels, start.pixel);
    Epilogue::load(a.operands, outputs, shared.channels);
    __syncthreads();

    const int stages = static_cast<int>((a.weight.steps + kSteps - 1) / kSteps);
    SUBBIT_UNROLL
    for (int s = 0; s < kAhead; ++s) {
      if (s < stages) fill(a, shared, s, start.group);
      commit_copies();
    }
    Sums sums = {}, of_stage = {};
    Fragments w = {};
    Signs signs = {};
    load_signs(a, signs, 0, start, at);
    for (int s = 0; s < stages; ++s) {
      wait_for_copies<kAhead - 1>();
      fence_for_products();
      __syncthreads();  // stage s is there for all, and so is the place of the next copies
      multiply(shared.stages[s % Tile::kStages], Kind::kSumsStages ? of_stage : sums, w, signs, at);
      if (s + 1 < stages) load_signs(a, signs, s + 1, start, at);
      if (s + kAhead < stages) fill(a, shared, s + kAhead, start.group);
      commit_copies();
      if constexpr (Kind::kSumsStages) {
        wait_for_products<0>();
        settle(of_stage);
        SUBBIT_UNROLL
        for (int n = 0; n < kFragments; ++n) {
          SUBBIT_UNROLL
          for (int i = 0; i < 4; ++i) sums[n][i] = __fadd_rn(sums[n][i], of_stage[n][i]);
        }
      }
    }
    if constexpr (!Kind::kSumsStages) {
      wait_for_products<0>();
      settle(sums);
    }
    wait_for_copies<0>();
    SUBBIT_UNROLL
    for (int round = 0; round < kRounds; ++round) {
      __syncthreads();  // nobody reads a stage, or the sums of the last round, any more
      share_sums(shared, sums, round, at);
      __syncthreads();
      Epilogue::template finish<kRoundPixels>(
          a.params, a.operands, a.epilogue, outputs, shared.channels,
          [&](int row) { return shared.pixels[round * kRoundPixels + row].to; },
          [&](int row, int output) { return shared.sums[row][output]; });
    }
  }

  // Starts the copies of a stage: [plane][pixel][128 bytes].
  static SUBBIT_DEVICE void fill(const ProductArgs& a, Shared& shared, int s, std::int64_t group) {
    const int thread = static_cast<int>(threadIdx.x), piece = thread % kPieces;
    constexpr int kRows = kThreads / kPieces;  // pixels that are filled at once
    static_assert(Tile::kPixels % kRows == 0);
    const PieceOfTap from_pixel =
        piece_of_tap<Kind::kPieceBytes>(a, static_cast<std::uint32_t>(s) * kPieces + piece, group);
    unsigned char* stage = shared.stages[s % Tile::kStages];
    SUBBIT_UNROLL
    for (int first = 0; first < Tile::kPixels; first += kRows) {
      const int row = first + thread / kPieces;
      const TilePixel pixel = shared.pixels[row];
      const bool valid = from_pixel.is_there & is_inside(a, pixel, from_pixel.offset);
      const std::int64_t from = valid ? from_pixel.from + pixel.x_offset : 0;
      SUBBIT_UNROLL
      for (int plane = 0; plane < Kind::kPlanes; ++plane) {
        copy_async<Kind::kPieceBytes>(stage + plane * kPlaneBytes + swizzled(row, piece), a.x.planes[plane] + from,
                                      valid);
      }
    }
  }

  // Straight from global memory; they are wanted when the next stage is there.
  static SUBBIT_DEVICE void load_signs(const ProductArgs& a, Signs& signs, int s, const TileStart& start,
                                       const Place& at) {
    const auto* weight = static_cast<const std::uint32_t*>(a.operands.prepared_weight);
    const std::int64_t block = start.output / (kFragmentOutputs * Kind::kSignsM) + at.warp / 2;
    const std::int64_t words = (start.group * a.weight.blocks + block) * a.weight.block_words;
    SUBBIT_UNROLL
    for (int i = 0; i < kSteps; ++i) {
      const std::int64_t step = std::int64_t{s} * kSteps + i;
      const bool valid = block < a.weight.blocks && step < a.weight.steps;
      const auto* from = reinterpret_cast<const uint4*>(weight + words + step * kWarpLanes) + at.g;
      signs[i] = valid ? __ldg(from) : make_uint4(0, 0, 0, 0);
    }
  }

  // Register r has piece r / 2 of the slice, of rows g and, where r is odd, g + 8.
  static SUBBIT_DEVICE FragmentA decode(const uint4& signs, int slice, int shift) {
    const std::uint32_t words[2] = {slice % 2 == 0 ? signs.x : signs.z, slice % 2 == 0 ? signs.y : signs.w};
    FragmentA w;
    SUBBIT_UNROLL
    for (int r = 0; r < 4; ++r) w.r[r] = with_signs(Kind::kOnes, words[r / 2] << (shift - r % 2));
    return w;
  }

  // Starts the products of a stage, one group each. Those of the last stage may still go on: a fragment is made anew
  // when the product that read it is done.
  static SUBBIT_DEVICE void multiply(const unsigned char* stage, Sums& into, Fragments& w, const Signs& signs,
                                     const Place& at) {
    SUBBIT_UNROLL
    for (int part = 0; part < Kind::kPlanes; ++part) {
      SUBBIT_UNROLL
      for (int slice = 0; slice < kSlices; ++slice) {
        if (part == 0) {
          if constexpr (!Kind::kSumsStages) wait_for_products<kSlices - 1>();
          w[slice] = decode(signs[slice / 2], slice, at.shift);
          settle(w[slice]);
          fence_registers();
        }
        const unsigned char* x = stage + part * kPlaneBytes + slice * kSliceBytes;
        const bool adds = !Kind::kSumsStages || part > 0 || slice > 0;
        multiply_async(into, w[slice], swizzled_descriptor(shared_address(x)), adds, typename Kind::Number{});
        commit_products();
      }
    }
  }

  static SUBBIT_DEVICE void share_sums(Shared& shared, const Sums& sums, int round, const Place& at) {
    SUBBIT_UNROLL
    for (int n = 0; n < kRoundFragments; ++n) {
      share_fragment(shared.sums, n * kFragmentPixels, at.warp * kFragmentOutputs, at.g, at.t,
                     sums[round * kRoundFragments + n]);
    }
  }
};

inline Status run_product_wgmma(const CudaParams& params, const CudaOperands& operands, Stream stream) {
  using Float16 = WgmmaProduct<NumbersKind<__half, 1>, WgmmaFloat16Tile>;
  using Bfloat16 = WgmmaProduct<NumbersKind<__nv_bfloat16, 1>, WgmmaFloat16Tile>;
  using Float32 = WgmmaProduct<NumbersKind<__nv_bfloat16, 3>, WgmmaFloat32Tile>;
  ProductArgs args{};
  const Status status = start_args(params, operands, stream, args);
  if (status != kStarted) return status;
  switch (params.element) {
    case Element::kFloat32:
      return start_tile<Float32, WgmmaFloat32Tile>(args, stream);
    case Element::kFloat16:
      return start_tile<Float16, WgmmaFloat16Tile>(args, stream);
    case Element::kBfloat16:
      break;
  }
  return start_tile<Bfloat16, WgmmaFloat16Tile>(args, stream);
}

}  // namespace subbit
