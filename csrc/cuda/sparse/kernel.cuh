// The sparse route: the paper's sharing on tensor cores, for codebooks of at most 8 codewords.
//
//     out[o, p] = sum over channels c of R[c, index[o, c], p],    R[c, k, p] = the response of codeword k at pixel p
//
// is a product of matrices: a one-hot one, outputs by (channel, codeword), and the responses, (channel, codeword) by
// pixels. Of four codewords of a channel one is taken, so the one-hot matrix is 2:4 sparse (with 8 codewords it is two
// groups of four, one of them empty), which tensor cores multiply at twice the rate. Against the nine multiply-adds per
// channel of a dense product, 4 codewords take 4 at twice the rate, 2/9, and 8 codewords 4/9.
//
// A block takes a box of at most 64 output pixels (box.h) and a tile of outputs, and goes through the channels
// in stages of 16 or 32. Of each stage it
//   1. copies its tile of x, halo included, [position][channels], asynchronously;
//   2. makes the responses, by tensor cores too, rounds them to 16 bits and writes them to shared memory;
//   3. adds the sparse products, whose weight (weight.h) comes straight from global memory, to its sums.
// The copies of stage s + 2 and the responses of stage s + 1 are made while those of stage s are multiplied; float32,
// whose responses take three times the memory, has one buffer of them, and one barrier more.
//
// Responses are a dense product of 16 channels by 16 positions of x (A) by 8 codewords (B). A comes by ldmatrix, which
// transposes: each row it reads is 8 channels of one position. Neighbouring pixels of a row see 3 x 4 positions (stride
// 1) or 3 x 5 (stride 2), at most 16: so A is loaded for pairs of pixels, and B has the codewords' signs at the places
// that each of the two sees, 0 elsewhere. With 4 codewords the 8 columns are both pixels'. Where two pixels see more (a
// stride that is neither the dilation nor twice as much) each has an A of its own.
//
// Shared memory. Responses are [step][pixel][64 bytes], so that a lane's four registers of B in a sparse product are
// one 16-byte load at 16 lane of 8 pixels: a quarter of a warp reads 128 bytes in a row, free of conflicts. The sparse
// product's lane t wants k = 8 i + 2 t of word i, and k = 4 j + codeword (or 8 j + codeword) for the step's channel j:
// so codewords 2 q and 2 q + 1 of channel j are word (j / 2) of lane 2 (j % 2) + q (or word j of lane q). The 32 words
// that a store of the fragments' lanes writes are those of two pixels (4 codewords), or of one pixel in two steps (8):
// 64 bytes each, on different banks because pixels are 64 bytes apart, and steps 64 more than a multiple of 128.
//
// What bounds it, by arithmetic for an A100 (a multiprocessor does 1024 float16 multiply-adds per clock, 2048 sparse
// ones, and 128 bytes of shared memory), in clocks for 64 pixels of 32 channels, 4 codewords, pairs:
//     128 outputs:  tensor cores  512 (sparse) + 128 (responses)   shared  256 (ldmatrix) + 128 (writes) + 256 (reads)
//     256 outputs:  tensor cores 1024 + 128                        shared  256 + 128 + 512
// The dense product of the same takes 2304 and 4608 clocks. With 8 codewords: 1024 + 256 and 256 + 256 + 512, against
// the same 2304. An H100 does 1.24 times as much per clock by mma.sync, and twice that by sparse products if they share
// its limits (assumed), with as much shared memory: at 256 outputs the tensor cores are the bound there too. Making the
// weight's registers takes 8 of the 64 (or 32) clocks that their products do. None of this is measured yet.
//
// Rounding. x and the signs are exact, a response is a float32 sum of nine numbers, rounded once to x's type; their
// sums are float32. So with u = 2^-11 (float16) or 2^-8 (bfloat16), and at most u_min = 2^-25 (float16) for tiny
// responses,
//     |error| <= sum over c of (u |R| + u_min) + the float32 sums' own,
// and integers are exact while every |R| is at most 2048 or 256. float32 is split into three bfloat16 parts, as are its
// responses, both exactly (arrange.cuh); a response is 27 additions, a sum one for each channel and part. The tensor
// core's additions lose at most 2^-23 of a partial sum, of which S = sum |x| over K in all is the most, so
//     |error| <= (30 + 1.02 (channels + steps)) 2^-23 S,
// where a float32 sum in a row is allowed 9 channels 2^-24 S.
//
// Infinities. 0 times an infinite response is NaN, and float16 responses may overflow where sums do not. So a sum that
// is not finite is added anew, by the thread that finishes it, in the plain order: what comes of NaN and infinities is
// then what it is in F.conv2d. Calls that are full of them are slow. No infinite response is missed: an output either
// takes it, or its codeword's number is not part of the sum.
#pragma once

#include <cstdint>

#include "cuda/common/arrange.cuh"
#include "cuda/common/copy_async.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/params.h"
#include "cuda/common/platform.h"
#include "cuda/common/tile_epilogue.cuh"
#include "cuda/sparse/box.h"
#include "cuda/sparse/kinds.cuh"
#include "cuda/sparse/mma_sparse.cuh"
#include "cuda/sparse/plain_sum.cuh"
#include "cuda/sparse/weight.h"

namespace subbit {

template <class Kind, class Tile>
struct Sparse {
  using Half = typename Kind::Half;
  using Epilogue = TileEpilogue<Tile::kOutputs, Tile::kThreads>;
  using Outputs = typename Epilogue::Outputs;
  static constexpr int kThreads = Tile::kThreads;
  // Twelve warps may have 168 registers per thread, eight 255.
  static constexpr int kBlocksPerMultiprocessor =
      (Tile::kM * Tile::kN > 16 || Kind::kParts > 1 ? 8 : 12) / Tile::kWarps;
  static constexpr int kSteps = Kind::kSteps, kParts = Kind::kParts;
  static constexpr int kFragmentChannels = 16;
  static constexpr int kPieces = Kind::kStageChannels * 2 / kSparsePieceBytes;  // of a position of a stage
  static constexpr int kBatch = 4;                                              // pairs whose loads are under way
  static constexpr int kWarpPairs = kBoxPairs / Tile::kWarps;
  static constexpr int kPartBytes = kSteps * kSparseStepRow;  // of responses
  static constexpr int kResponseBytes = kParts * kPartBytes;  // of a buffer
  static constexpr int kRounds = sparse_rounds(Tile::kOutputs);
  static constexpr int kRoundN = Tile::kN / kRounds, kRoundPixels = kBoxPixels / kRounds;
  static constexpr int kSumRow = sparse_sum_row(Tile::kOutputs);
  static_assert(kWarpPairs % kBatch == 0 && Kind::kStageChannels % kFragmentChannels == 0 && kSteps % 2 == 0);

  // A position of the tile of x: where it comes from, in bytes, or -1 for padding; and where it goes in the tile.
  struct alignas(16) Position {
    std::int64_t from;
    std::int32_t to;
  };

  // What follows it: the table of positions, the responses' buffers, the tiles of x; at last sums in place of those.
  struct Shared {
    OutputPixel pixels[kBoxPixels];
    alignas(16) std::int32_t pairs[kBoxPairs];  // where in a tile of x a pair's first position is
    typename Epilogue::Channels channels;
  };
  static constexpr int kFixedBytes = (sparse_fixed_bytes(Tile::kOutputs) + 127) / 128 * 128;
  static_assert(sizeof(Shared) <= kFixedBytes && sizeof(Position) == 16);

  // Which warp of the tile this is, and which lane (g, t).
  struct Place {
    int warp, m, n, g, t, lane;
  };

  // What a thread needs to make responses.
  struct Responder {
    FragmentB codewords[2];  // for the first and the second pixel of a pair
    int row;                 // where the row of x lies that this lane gives the address of, seen from the pair's first
    int next;                // where the second pixel's first position is, seen from the pair's first
    int to;                  // where in the responses this lane's first word goes, seen from the pair's first pixel
  };

  using Sums = float[Tile::kM][Tile::kN][4];
  using Words = uint2[Tile::kM];

  static SUBBIT_DEVICE Place place() {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpLanes, lane = thread % kWarpLanes;
    return {warp, warp % Tile::kWarpsM, warp / Tile::kWarpsM, lane / 4, lane % 4, lane};
  }

  static SUBBIT_DEVICE Shared& fixed() { return *reinterpret_cast<Shared*>(shared_memory()); }
  static SUBBIT_DEVICE Position* positions() { return reinterpret_cast<Position*>(shared_memory() + kFixedBytes); }
  static SUBBIT_DEVICE void run(const SparseArgs& a) {
    const std::uint32_t tile = blockIdx.x;  // outputs first: blocks that run together share their x
    const std::uint32_t row = tile / a.output_tiles, groups = static_cast<std::uint32_t>(a.weight.groups);
    const std::uint32_t box = row / groups, group = row - box * groups;
    const Outputs outputs{group, a.weight.group_outputs,
                          static_cast<std::int64_t>(tile - row * a.output_tiles) * Tile::kOutputs};
    const Place at = place();
    set_up_box(a, box, group);
    Epilogue::load(a.operands, outputs, fixed().channels);
    const Responder responder = make_responder(a, at);
    __syncthreads();

    unsigned char* const made = shared_memory() + a.box.responses;
    unsigned char* const tiles = made + Kind::kBuffers * kResponseBytes;
    const auto tile_of = [&](int s) { return tiles + s % kSparseTileBuffers * kParts * a.box.tile_bytes; };
    const auto responses_of = [&](int s) { return made + s % Kind::kBuffers * kResponseBytes; };
    const auto stages = static_cast<int>(divide_up(a.weight.group_channels, Kind::kStageChannels));
    const auto fill_next = [&](int s) {
      if (s < stages) fill(a, tile_of(s), s);
      commit_copies();
    };
    Sums sums = {};
    Words words = {}, next_words = {};
    load_words(a, next_words, 0, outputs, at);
    fill_next(0);
    if constexpr (Kind::kBuffers == 2) fill_next(1);
    for (int s = 1 - Kind::kBuffers; s < stages; ++s) {  // with two buffers, responses are one stage ahead
      if (s < 0) {
        wait_for_copies<1>();
      } else {
        wait_for_copies<0>();
      }
      // The tile that was awaited is there for all, and so are the responses of stage s where they were made before.
      // Nobody reads the tile and the responses any more that are overwritten now.
      __syncthreads();
      if (s >= 0) fill_next(s + Kind::kBuffers);
      const int made_now = s + Kind::kBuffers - 1;
      if (made_now < stages) respond(a, tile_of(made_now), responses_of(made_now), responder, at);
      if constexpr (Kind::kBuffers == 1) __syncthreads();
      if (s < 0) continue;
      SUBBIT_UNROLL
      for (int m = 0; m < Tile::kM; ++m) words[m] = next_words[m];
      if (s + 1 < stages) load_words(a, next_words, s + 1, outputs, at);
      multiply(responses_of(s), s, sums, words, at);
    }
    wait_for_copies<0>();
    auto& shared_sums = *reinterpret_cast<float (*)[kRoundPixels][kSumRow]>(made);
    SUBBIT_UNROLL
    for (int round = 0; round < kRounds; ++round) {
      __syncthreads();  // nobody reads responses, or the sums of the last round, any more
      share_sums(shared_sums, sums, round, at);
      __syncthreads();
      finish_round(a, shared_sums, round, outputs);
    }
  }

  // The box's pixels, pairs and positions of x.
  static SUBBIT_DEVICE void set_up_box(const SparseArgs& a, std::uint32_t number, std::uint32_t group) {
    const ConvProblem& conv = a.params.conv;
    const SparseBox& box = a.box;
    const std::uint32_t line = number / a.column_boxes, images = line / a.row_boxes;
    const std::int64_t first_image = std::int64_t{images} * box.images;
    const std::int64_t first_row = std::int64_t{line - images * a.row_boxes} * box.rows;
    const std::int64_t first_column = std::int64_t{number - line * a.column_boxes} * (2 * box.pairs);
    const int pairs = box.images * box.rows * box.pairs;
    for (int i = static_cast<int>(threadIdx.x); i < kBoxPixels; i += kThreads) {
      const int pair = i / 2, box_line = pair / box.pairs, box_image = box_line / box.rows;
      const int box_row = box_line - box_image * box.rows, box_column = 2 * (pair - box_line * box.pairs) + i % 2;
      const std::int64_t image = first_image + box_image, row = first_row + box_row, column = first_column + box_column;
      const bool is_there = pair < pairs && image < conv.batch && row < conv.out_height && column < conv.out_width;
      fixed().pixels[i] = {is_there ? static_cast<std::int32_t>(image) : -1, static_cast<std::int32_t>(row),
                           static_cast<std::int32_t>(column)};
      if (i % 2 == 0) {
        const int row_of_tile = box_row * static_cast<int>(conv.stride_h);
        const int column_of_tile = box_column * static_cast<int>(conv.stride_w);
        fixed().pairs[pair] = pair < pairs ? box_image * box.image_bytes + row_of_tile * box.row_bytes +
                                                 column_of_tile * box.position_bytes
                                           : 0;
      }
    }
    const int count = box.positions();
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      const int box_line = i / box.tile_columns, box_image = box_line / box.tile_rows;
      const int box_row = box_line - box_image * box.tile_rows, box_column = i - box_line * box.tile_columns;
      const std::int64_t image = first_image + box_image;
      const std::int64_t row = first_row * conv.stride_h - conv.pad_h + box_row;
      const std::int64_t column = first_column * conv.stride_w - conv.pad_w + box_column;
      const bool is_there = image < conv.batch && row >= 0 && row < conv.height && column >= 0 && column < conv.width;
      Position position;
      position.from = is_there ? image * a.x.n + row * a.x.h + column * a.x.w + group * a.x.group : -1;
      position.to = box_image * box.image_bytes + box_row * box.row_bytes + box_column * box.position_bytes;
      positions()[i] = position;
    }
  }

  // Position k of a product of responses, seen from the pair's first: row k / span, column k % span of 3 x span; those
  // beyond meet a 0 of B, so they may be any that this pixel or pair sees.
  static SUBBIT_DEVICE Responder make_responder(const SparseArgs& a, const Place& at) {
    const ConvProblem& conv = a.params.conv;
    const int span = a.box.span, last = kTaps * span - 1;
    Responder made{};
    {
      const int wanted = at.lane / 16 * 8 + at.lane % 8, k = wanted <= last ? wanted : last;
      made.row = k / span * static_cast<int>(conv.dilation_h) * a.box.row_bytes +
                 k % span * static_cast<int>(conv.dilation_w) * a.box.position_bytes +
                 at.lane / 8 % 2 * kSparsePieceBytes;
    }
    made.next = static_cast<int>(conv.stride_w) * a.box.position_bytes;
    constexpr bool kIsShared = Kind::kSlots == 4;  // a fragment's columns are both pixels'
    const int codeword = at.g % Kind::kSlots;
    const std::uint32_t taps = codeword < a.params.codewords ? a.operands.codebook[codeword] : 0u;
    SUBBIT_UNROLL
    for (int pixel = 0; pixel < 2; ++pixel) {
      SUBBIT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int k = i / 2 * 8 + 2 * at.t + i % 2, row = k / span, column = k % span;
        // Pairs that share A have the first fragment for both where its columns are both pixels'.
        const int of_pixel = kIsShared ? at.g / 4 : pixel;
        const int tap_column = column - of_pixel * (span - kTaps);
        const bool is_used = !kIsShared || (a.box.is_paired() ? pixel == 0 : pixel == of_pixel);
        const bool is_tap = k <= last && tap_column >= 0 && tap_column < kTaps && codeword < a.params.codewords;
        const bool is_plus = (taps >> (is_tap ? row * kTaps + tap_column : 0) & 1) != 0;
        const std::uint32_t half = is_used && is_tap ? Kind::kOne | (is_plus ? 0u : 0x8000u) : 0u;
        made.codewords[pixel].r[i / 2] |= half << (i % 2 * 16);
      }
    }
    made.to = kIsShared ? at.t / 2 * kSparseStepBytes + (at.g % 2 * 2 + at.t % 2) * 16 + at.g / 2 * 4
                        : at.g / 4 * kSparseStepRow + at.t * 16 + at.g % 4 * 4;
    return made;
  }

  // Starts the copies of a stage's tile of x: parts, [image][row][column][channels].
  static SUBBIT_DEVICE void fill(const SparseArgs& a, unsigned char* tile, int s) {
    const int count = a.box.positions() * kPieces;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      const int piece = i % kPieces;
      const Position position = positions()[i / kPieces];
      const std::uint32_t of_group = static_cast<std::uint32_t>(s) * kPieces + piece;
      const bool valid = position.from >= 0 && of_group < a.x.tap_pieces;
      const std::int64_t from = valid ? position.from + std::int64_t{of_group} * kSparsePieceBytes : 0;
      SUBBIT_UNROLL
      for (int part = 0; part < kParts; ++part) {
        copy_async<kSparsePieceBytes>(tile + part * a.box.tile_bytes + position.to + piece * kSparsePieceBytes,
                                      a.x.planes[part] + from, valid);
      }
    }
  }

  static SUBBIT_DEVICE void respond(const SparseArgs& a, const unsigned char* tile, unsigned char* to,
                                    const Responder& responder, const Place& at) {
    if (a.box.is_paired()) {
      respond_to<true>(a, tile, to, responder, at);
    } else {
      respond_to<false>(a, tile, to, responder, at);
    }
  }

  // The responses of a stage: a warp's pairs, and 16 channels at a time.
  template <bool kIsPaired>
  static SUBBIT_DEVICE void respond_to(const SparseArgs& a, const unsigned char* tile, unsigned char* to,
                                       const Responder& responder, const Place& at) {
    constexpr int kBoth = kIsPaired ? 1 : 2;  // loads of a pair
    SUBBIT_ROLLED
    for (int first = 0; first < kWarpPairs; first += kBatch) {
      const int first_pair = at.warp * kWarpPairs + first;
      const int4 offsets = *reinterpret_cast<const int4*>(&fixed().pairs[first_pair]);
      const int of_pairs[kBatch] = {offsets.x, offsets.y, offsets.z, offsets.w};
      SUBBIT_UNROLL
      for (int channel = 0; channel < Kind::kStageChannels; channel += kFragmentChannels) {
        float found[kBatch][2][4] = {};  // for 4 codewords, the first of the two is both pixels'
        SUBBIT_UNROLL
        for (int part = 0; part < kParts; ++part) {
          FragmentA x[kBatch][kBoth];
          SUBBIT_UNROLL
          for (int i = 0; i < kBatch; ++i) {
            SUBBIT_UNROLL
            for (int pixel = 0; pixel < kBoth; ++pixel) {
              x[i][pixel] = load_transposed(tile + part * a.box.tile_bytes + of_pairs[i] + responder.row +
                                            pixel * responder.next + channel * 2);
            }
          }
          SUBBIT_UNROLL
          for (int i = 0; i < kBatch; ++i) {
            mma(found[i][0], x[i][0], responder.codewords[0], Half{});
            if constexpr (Kind::kSlots == 8) {
              mma(found[i][1], x[i][kBoth - 1], responder.codewords[1], Half{});
            } else if constexpr (!kIsPaired) {
              mma(found[i][0], x[i][1], responder.codewords[1], Half{});
            }
          }
        }
        SUBBIT_UNROLL
        for (int i = 0; i < kBatch; ++i) {
          SUBBIT_UNROLL
          for (int pixel = 0; pixel < Kind::kSlots / 4; ++pixel) {
            unsigned char* const place = to + channel / Kind::kStepChannels * kSparseStepRow +
                                         (2 * (first_pair + i) + pixel) * kSparseStepBytes + responder.to;
            store(place, found[i][pixel][0], found[i][pixel][1]);  // channel g of 16
            constexpr int kEightChannels = 8 / Kind::kStepChannels * kSparseStepRow;
            store(place + kEightChannels, found[i][pixel][2], found[i][pixel][3]);
          }
        }
      }
    }
  }

  // Two responses, rounded or split into parts.
  static SUBBIT_DEVICE void store(unsigned char* to, float first, float second) {
    if constexpr (kParts == 1) {
      *reinterpret_cast<std::uint32_t*>(to) = round_pair(first, second, Half{});
    } else {
      const Parts one = split(first), other = split(second);
      SUBBIT_UNROLL
      for (int part = 0; part < kParts; ++part) {
        *reinterpret_cast<std::uint32_t*>(to + part * kPartBytes) = one.part[part] | std::uint32_t{other.part[part]}
                                                                                         << 16;
      }
    }
  }

  // Straight from global memory: a warp's words lie in a row, and only its lanes want them.
  static SUBBIT_DEVICE void load_words(const SparseArgs& a, Words& words, int s, const Outputs& outputs,
                                       const Place& at) {
    const auto* weight = static_cast<const uint2*>(a.operands.prepared_weight);
    const std::int64_t quad = std::int64_t{s} * kSteps / kSparseSteps;
    SUBBIT_UNROLL
    for (int m = 0; m < Tile::kM; ++m) {
      const std::int64_t block = outputs.first / kFragmentOutputs + at.m * Tile::kM + m;
      const std::int64_t row = (outputs.group * a.weight.blocks + block) * a.weight.quads + quad;
      words[m] = block < a.weight.blocks ? __ldg(weight + row * kWarpLanes + at.lane) : make_uint2(0, 0);
    }
  }

  // Adds the sparse products of a stage.
  static SUBBIT_DEVICE void multiply(const unsigned char* responses, int s, Sums& sums, const Words& words,
                                     const Place& at) {
    const int first_pair = kSteps == kSparseSteps ? 0 : s % 2;  // of steps, of the two that share the words
    const unsigned char* const from = responses + at.n * Tile::kN * kFragmentPixels * kSparseStepBytes + at.lane * 16;
    SUBBIT_UNROLL
    for (int pair = 0; pair < kSteps / 2; ++pair) {
      std::uint32_t metadata[Tile::kM], ones[Tile::kM];
      SUBBIT_UNROLL
      for (int m = 0; m < Tile::kM; ++m) {
        metadata[m] = (words[m].y >> (first_pair + pair) & 0x11111111u) * 10 + 0x44444444u;
        ones[m] = words[m].x >> (8 * (first_pair + pair));
      }
      multiply_step<0>(from + 2 * pair * kSparseStepRow, sums, metadata, ones);
      multiply_step<1>(from + (2 * pair + 1) * kSparseStepRow, sums, metadata, ones);
    }
  }

  template <int kSelector>
  static SUBBIT_DEVICE void multiply_step(const unsigned char* from, Sums& sums,
                                          const std::uint32_t (&metadata)[Tile::kM],
                                          const std::uint32_t (&ones)[Tile::kM]) {
    SUBBIT_UNROLL
    for (int part = 0; part < kParts; ++part) {
      uint4 of_pixels[Tile::kN];  // pixel g of each eight
      SUBBIT_UNROLL
      for (int n = 0; n < Tile::kN; ++n) {
        of_pixels[n] =
            *reinterpret_cast<const uint4*>(from + part * kPartBytes + n * kFragmentPixels * kSparseStepBytes);
      }
      SUBBIT_UNROLL
      for (int m = 0; m < Tile::kM; ++m) {
        FragmentA w;
        SUBBIT_UNROLL
        for (int r = 0; r < 4; ++r) {
          constexpr std::uint32_t kTwo = 0x00010001u;
          w.r[r] = (ones[m] & kTwo << (4 * kSelector + r)) * (Kind::kOne >> (4 * kSelector + r));
        }
        SUBBIT_UNROLL
        for (int n = 0; n < Tile::kN; ++n) {
          mma_sparse<kSelector>(sums[m][n], w, of_pixels[n], metadata[m], Half{});
        }
      }
    }
  }

  static SUBBIT_DEVICE void share_sums(float (&shared)[kRoundPixels][kSumRow], const Sums& sums, int round,
                                       const Place& at) {
    SUBBIT_UNROLL
    for (int m = 0; m < Tile::kM; ++m) {
      SUBBIT_UNROLL
      for (int n = 0; n < kRoundN; ++n) {
        share_fragment(shared, (at.n * kRoundN + n) * kFragmentPixels, (at.m * Tile::kM + m) * kFragmentOutputs, at.g,
                       at.t, sums[m][round * kRoundN + n]);
      }
    }
  }

  static SUBBIT_DEVICE void finish_round(const SparseArgs& a, const float (&shared)[kRoundPixels][kSumRow], int round,
                                         const Outputs& outputs) {
    constexpr int kRoundWarpPixels = kRoundN * kFragmentPixels;
    const auto pixel_of = [&](int row) {
      return fixed().pixels[(row / kRoundWarpPixels * kRounds + round) * kRoundWarpPixels + row % kRoundWarpPixels];
    };
    const auto sum_of = [&](int row, int output) {
      const float sum = shared[row][output];
      return is_finite(sum) ? sum : plain_sum<Kind>(a, pixel_of(row), outputs.group, outputs.channel(output));
    };
    Epilogue::template finish<kRoundPixels>(a.params, a.operands, a.epilogue, outputs, fixed().channels, pixel_of,
                                            sum_of);
  }
};

}  // namespace subbit
