// The steps of a convolution that are written once an instruction level, and what they hand each other.
//
//   stage    input rows -> partial sums of +-taps, or taps as bits  (a unit and strip of pixels at a time)
//   respond  the response of every codeword                         (a block of units and tile of pixels)
//   gather   sum of the responses that the indices name             (a block of units and tile of pixels)
//   finish   scale * sum + bias, written to the output              (once a pixel)
//
// Three layouts are worth having. Two share responses R[unit][codeword][pixel]:
//
//   rows    lanes are pixels: R is an array of rows [codeword][unit][pixels of the tile]; the gather loads
//           the row that an index names and adds it.           Any level, any tau.
//   tables  lanes are output channels: R is [pixel][unit][codeword]; the responses of one pixel and unit fill
//           (part of) a register, and a byte permutation looks up 64 output channels at once.     VBMI only.
//
// The third shares nothing, for it needs no responses: where there are few output channels to share them, binary
// activations are cheaper to match against the decoded bits of the weight.
//
//   bits    lanes are output channels, 64 input channels a word: XOR and population count.    VPOPCNTDQ only.
#pragma once

#include <cstdint>

#include "core/conv_params.h"
#include "core/level.h"

namespace subbit {

// ---- stage ----------------------------------------------------------------------------------------------

// One phase of an input row (core/phases.h): `before` zeros of padding, `count` elements of the image `step`
// apart, then zeros up to `length`.
struct Line {
  const float* x;  // the first element, in the first row that lies in the image
  std::int64_t step;
  std::int64_t before, count, length;
};

constexpr int kMaxLines = 8;

// Rows 0 .. rows - 1 of one phase of one unit's planes. Rows outside [inside_begin, inside_end) are padding.
// 3x3: a row has `line_count` phases of columns, and tap t reads lines[tap_line[t]] from tap_shift[t] on.
// 8x1x1: one line for each of the unit's eight channels.
struct StageTask {
  Line lines[kMaxLines];
  int line_count;
  int tap_line[3];
  std::int64_t tap_shift[3];
  std::int64_t rows, inside_begin, inside_end;
  std::int64_t row_step;  // elements of the image from row to row
  std::int64_t columns;   // of a row
  void* planes;           // row j of plane i starts at element i * plane_stride + j * columns
  std::int64_t plane_stride;
  void* scratch;  // line_count lines, scratch_stride elements apart
  std::int64_t scratch_stride;
  bool binarize;   // float kernels only: take the sign of the input
  bool sign_zero;  // sign(0) is +1
  int code_unit;   // tables layout: what codes are multiplied by
};

// The line as row j has it.
inline Line line_of_row(const StageTask& task, int l, std::int64_t j) {
  Line line = task.lines[l];
  if (j < task.inside_begin || j >= task.inside_end) {
    line.before = line.length;
    line.count = 0;
  } else {
    line.x += (j - task.inside_begin) * task.row_step;
  }
  return line;
}

// Vectors are stored whole, so up to this many bytes behind a row of a plane or line are written (or read) too.
constexpr std::int64_t kStageSlack = 128;

// Planes that stage writes for one unit in the rows layout: signless sums, in which the first tap counts
// positive. A row of three taps has 2^2 of them, a half of four channels 2^3. In the number of a pattern
// the sign of the second tap is the most significant bit, and 1 is minus.
constexpr int kPatternsOfRow = 4;
constexpr int kPatternsOfHalf = 8;

// ---- rows layout ----------------------------------------------------------------------------------------

// How respond forms the codewords from the signless sums of a tile. It first copies those of all parts but the last
// side by side and with both signs (a tile begins anywhere in a plane, so reading them there would cross cache lines
// again and again): plus or minus pattern q of part i is then at element (2 * (i * patterns + q) + minus) * pixels.
// Row r of the result is
//
//     (first[r] + second[r]) +- last                        8x1x1 units: first[r] +- last
//
// Rows are sorted into runs of equal last pattern and sign, so that each run is one loop without branches whose last
// term stays in a register: run = 2 * pattern + minus.
struct RowTerms {
  std::uint16_t first, second;  // elements from the start of the copied sums
};
constexpr int kMaxRuns = 2 * kPatternsOfHalf;

struct RespondRowsTask {
  const RowTerms* terms;         // of each row
  const std::uint16_t* run_end;  // [2 * patterns of the last part]
  Unit unit;
  const void* part[3];       // first plane of unit 0's parts (3 rows or 2 halves), at the tile's first pixel
  std::int64_t plane_bytes;  // from plane to plane of a part
  std::int64_t unit_bytes;   // from the planes of one unit to the next one's
  std::int64_t units;        // at least 1
  std::int64_t row_bytes;    // from row to row of the result
  void* rows;                // [row][unit][pixels]: stores follow each other
};

struct GatherRowsTask {
  const void* rows;
  const std::uint16_t* offsets;  // [outputs / kOutputsPerStep][units][kOutputsPerStep], bytes from `rows`
  int units;
  std::int64_t outputs;  // a multiple of kOutputsPerStep
  int pixels;            // valid ones of the tile, at least 1
  void* sums;            // [outputs][pixels of a row]: added to
};

constexpr int kOutputsPerStep = 8;
constexpr int kBlockBytes = 16 * 1024;  // responses of a block of units: half of a 32 KiB L1
static_assert(kBlockBytes <= 65536, "offsets are 16 bits");

// ---- tables layout --------------------------------------------------------------------------------------

// A patch of binary activations as three codes, of up to three taps each: the rows of a 3x3 kernel, or channels
// 0 1 2, 3 4 5 and 6 7. A tap is a digit 0, 1 or 2 for -1, 0 or +1, so a code is a number below 27.
constexpr int kCodeParts = 3;
constexpr int kTapsOfCode = 3;
constexpr int kCodes = 27;

// The response to a patch is the sum of one row of `responses` for each of its codes. Planes hold codes times
// slot / 8, so that eight times a byte is the offset of its row.
struct RespondTablesTask {
  const std::uint8_t* codes[kCodeParts];  // of unit 0, at the tile's first pixel
  std::int64_t unit_stride;               // bytes between the codes of two units
  int units, pixels;
  const std::uint8_t* responses;  // [part][code][slot]: each codeword's response, biased to be positive
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

// ---- bits layout ----------------------------------------------------------------------------------------

// Activations are pairs of words, 64 channels each: which are not zero (`used`), and which of those are +1 (`plus`).
// Of a pixel, word w is at [2 * w] and [2 * w + 1]; words of pixels that are padding are 0.
struct StageBitsTask {
  const float* x;  // channel 0 of the word, at the first column that lies in the image
  std::int64_t x_channel, x_column;
  int channels;  // 1 to 64
  std::int64_t columns;
  std::uint64_t* words;      // of the first column
  std::int64_t word_stride;  // between two columns
  bool sign_zero;
};

struct MatchBitsTask {
  const std::uint64_t* pixel[4];   // kBitsPixels patches' first words
  const std::int64_t* tap_offset;  // of each tap from the first
  int taps, words;
  const std::uint64_t* weights;  // [outputs / 8][tap][word][8]: the bits of 64 channels for 8 outputs, 1 is +1
  std::int64_t outputs;          // a multiple of kOutputsPerMatch
  int pixels;                    // 1 to kBitsPixels
  std::uint16_t bias;            // added to every sum
  std::uint16_t* sums;           // [pixel][outputs]: written
};

constexpr int kBitsPixels = 4;
constexpr int kOutputsPerMatch = 32;

// ---- finish ---------------------------------------------------------------------------------------------

struct FinishTask {
  const void* sums;  // rows: [outputs][pixels of a row]; else [pixel][sums_stride]
  std::int64_t sums_stride;
  std::int64_t outputs;
  int pixels;
  std::int32_t bias_of_sums;  // what the other layouts have added to every sum
  float* y;                   // output channel 0 of the tile's first pixel
  std::int64_t y_channel, y_pixel;
  const float* scale;  // or null
  const float* bias;   // or null
};

// ---- the kernels ----------------------------------------------------------------------------------------

enum class Layout { kRows, kTables, kBits };

struct Kernel {
  const char* name;
  Level level;
  Activations activations;
  Layout layout;
  int pixels;  // of a tile
  int max_tau;
  void (*stage_3x3)(const StageTask&);
  void (*stage_8x1x1)(const StageTask&);
  void (*respond_rows)(const RespondRowsTask&);
  void (*gather_rows)(const GatherRowsTask&);
  void (*respond_tables)(const RespondTablesTask&);
  void (*gather_tables)(const GatherTablesTask&);
  void (*stage_bits)(const StageBitsTask&);
  void (*match_bits)(const MatchBitsTask&);
  void (*finish)(const FinishTask&);
};

}  // namespace subbit
