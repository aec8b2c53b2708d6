// The steps of a convolution that are written once an instruction level, and what they hand each other.
//
//   stage    input rows -> partial sums of +-taps            (per unit, per input row)
//   respond  partial sums -> the response of every codeword  (per unit, per tile of pixels)
//   gather   sum of the responses that the indices name      (per block of units, per tile)
//   finish   scale * sum + bias, written to the output       (once a tile)
//
// Two layouts of the responses R[unit][codeword][pixel] are worth having:
//
//   rows    lanes are pixels: R is an array of rows [unit][codeword][pixels of the tile]; the gather loads
//           the row that an index names and adds it.           Any level, any tau.
//   tables  lanes are output channels: R is [pixel][unit][codeword]; the responses of one pixel and unit fill
//           (part of) a register, and a byte permutation looks up 64 output channels at once.     VBMI only.
#pragma once

#include <cstdint>

#include "core/conv_params.h"
#include "core/level.h"

namespace subbit {

// ---- stage ----------------------------------------------------------------------------------------------

// One phase of one input row (core/phases.h): `before` zeros of padding, `count` elements of the image
// `step` apart, then zeros up to `length`.
struct Line {
  const float* x;
  std::int64_t step;
  std::int64_t before, count, length;
};

constexpr int kMaxLines = 8;

// 3x3: the row's `line_count` phases; tap t reads lines[tap_line[t]] from tap_shift[t] on.
// 8x1x1: one line for each of the unit's eight channels.
struct StageTask {
  Line lines[kMaxLines];
  int line_count;
  int tap_line[3];
  std::int64_t tap_shift[3];
  std::int64_t columns;       // output columns to produce
  void* planes;               // plane i starts at planes + i * plane_stride elements
  std::int64_t plane_stride;  // may be written up to kStageSlack bytes past `columns`
  void* scratch;              // line_count lines, scratch_stride elements apart
  std::int64_t scratch_stride;
  bool binarize;   // float kernels only: take the sign of the input
  bool sign_zero;  // sign(0) is +1
};

// Vectors are stored whole, so up to this many bytes behind a row of a plane or line are written too.
constexpr std::int64_t kStageSlack = 128;

// Planes that stage writes for one unit in the rows layout: signless sums, in which the first tap counts
// positive. A row of three taps has 2^2 of them, a half of four channels 2^3. In the number of a pattern
// the sign of the second tap is the most significant bit, and 1 is minus.
constexpr int kPatternsOfRow = 4;
constexpr int kPatternsOfHalf = 8;

// ---- rows layout ----------------------------------------------------------------------------------------

// How respond forms the codewords from the parts' signless sums: row r of the result is
//     (s0 * part0[offset0] + s1 * part1[offset1]) + s2 * part2[offset2]
// The rows are sorted by their signs (s0, s1, s2), so that each of the eight runs is one loop without
// branches. 8x1x1 units have two parts and four runs.
struct RowTerms {
  std::int32_t offset[3];  // elements from the part's first plane
};
struct RowProgram {
  const RowTerms* terms;
  int run_end[8];  // run r: s0 is minus where bit 2 of r is set, s1 bit 1, s2 bit 0 (two parts: bits 1, 0)
};

struct RespondRowsTask {
  const RowProgram* program;
  const void* part[3];  // first plane of a part, at the tile's first pixel
  void* rows;
};

struct GatherRowsTask {
  const void* rows;
  const std::uint16_t* offsets;  // [outputs / kOutputsPerStep][units][kOutputsPerStep], bytes from `rows`
  int units;
  std::int64_t outputs;  // a multiple of kOutputsPerStep
  int pixels;            // valid ones of the tile, at least 1
  void* sums;            // [outputs][pixels of a row]: added to
};

constexpr int kOutputsPerStep = 4;
constexpr int kBlockBytes = 16 * 1024;  // responses of a block of units: half of a 32 KiB L1
static_assert(kBlockBytes <= 65536, "offsets are 16 bits");

// ---- tables layout --------------------------------------------------------------------------------------

struct RespondTablesTask {
  const std::uint8_t* planes[3];  // 3x3: the three rows' codes; 8x1x1: low codes, high codes
  std::int64_t unit_stride;       // bytes between the planes of two units
  int units, pixels;
  const std::uint8_t* responses;  // [patch number][slot]: response of every codeword, biased
  int slot;                       // bytes of one unit's table: 8, 16, 32 or 64
  std::uint8_t* tables;           // [pixel][unit][slot], pixels table_stride bytes apart
  std::int64_t table_stride;
};

struct GatherTablesTask {
  const std::uint8_t* tables;
  std::int64_t table_stride;
  int slot;
  int registers;                  // 64-byte registers of tables a pixel
  const std::uint8_t* positions;  // [outputs / 64][registers * 64 / slot][64]
  std::int64_t outputs;           // a multiple of 64
  int pixels;                     // 1 to kTablePixels
  std::uint16_t* sums;            // [pixel][outputs]: added to
};

constexpr int kTablePixels = 8;

// ---- finish ---------------------------------------------------------------------------------------------

struct FinishTask {
  const void* sums;  // rows: [outputs][pixels of a row]; tables: [pixel][sums_stride]
  std::int64_t sums_stride;
  std::int64_t outputs;
  int pixels;
  std::int32_t bias_of_sums;  // what the tables layout has added to every sum
  float* y;                   // output channel 0 of the tile's first pixel
  std::int64_t y_channel, y_pixel;
  const float* scale;  // or null
  const float* bias;   // or null
};

// ---- the kernels ----------------------------------------------------------------------------------------

enum class Layout { kRows, kTables };

struct Kernel {
  const char* name;
  Level level;
  Activations activations;
  Layout layout;
  int pixels;  // of a tile
  int max_tau;
  void (*stage_3x3)(const StageTask&);
  void (*stage_8x1x1)(const StageTask&);
  void (*respond_rows)(const RespondRowsTask&, int parts);
  void (*gather_rows)(const GatherRowsTask&);
  void (*respond_tables)(const RespondTablesTask&, Unit unit);
  void (*gather_tables)(const GatherTablesTask&);
  void (*finish)(const FinishTask&);
};

}  // namespace subbit
