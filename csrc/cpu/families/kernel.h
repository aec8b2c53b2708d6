// The steps of a convolution that are written once an instruction level, and what they hand each other.
//
//   stage    the part of the input that a strip of pixels reads -> planes without gaps   (a channel at a time)
//   respond  the response of every codeword                         (rows: a block of units and tile of pixels)
//   gather   sum of the responses that the indices name
//   finish   scale * sum + bias, written to the output              (once per pixel)
//
// Two layouts share responses:
//
//   rows     lanes are pixels: responses are an array of rows [codeword][unit][pixels of the tile]; the gather
//            loads the row that an index names and adds it.                        Any level, any tau.
//   patches  binary activations only, lanes are output channels: the patch that a unit sees is a number of nine bits,
//            which names a row of bytes, the responses of all codewords; a byte permutation looks 64 output channels
//            up in it at once. The rows are made once, with the weight: there is nothing to respond.   VBMI only.
//
// The third shares nothing: where there are few output channels, or many codewords, binary activations are cheaper to
// match against the decoded bits of the weight.
//
//   bits     lanes are output channels, 64 input channels a word: XOR and population count with VPOPCNTDQ, with AVX2
//            look-ups of four channels at a time.                                    Either of the two, any tau.
#pragma once

#include <cstdint>

#include "core/problem.h"
#include "cpu/isa/level.h"

namespace subbit {

// ---- stage ----------------------------------------------------------------------------------------------

// One plane: the elements of an image (one channel, one phase of rows and columns: core/phases.h) that a strip reads,
// without gaps between rows. Rows outside [inside_begin, inside_end) are padding; of the others element i lies in the
// image where 0 <= i - before < count. Everything else is 0.
struct StageTask {
  const float* x;               // the first element in the image, in row inside_begin
  std::int64_t step, row_step;  // elements of the image from column to column and from row to row
  std::int64_t rows, columns;
  std::int64_t inside_begin, inside_end;
  std::int64_t before, count;
  void* plane;
  bool binarize;   // float kernels only: take the sign of the input
  bool sign_zero;  // sign(0) is +1
};

// Vectors are loaded and stored whole, so up to this many bytes before and after a plane are touched too.
constexpr std::int64_t kPlaneSlack = 128;

// ---- rows layout ----------------------------------------------------------------------------------------

// A part of a 3x3 unit is a row of three taps; of an 8x1x1 unit, a half of four channels. Up to its sign a row has 2^2
// sums and a half 2^3: its *patterns*, in which the first tap counts positive. In the number of a pattern the sign of
// the second tap is the most significant bit, and 1 is minus.
constexpr int kPatternsOfRow = 4;
constexpr int kPatternsOfHalf = 8;

// A codeword's response is
//
//     (+-first row +- second row) +- last row          8x1x1 units: +-first half +- last half
//
// Usually code made for the codebook does this (respond_code.h). The kernels' own step, which the scalar level and
// systems without such code run, first writes the sums of all parts with both signs side by side: plus or
// minus pattern q of part i is at element (2 * (i * patterns + q) + minus) * pixels.
struct RowTerms {
  std::uint16_t part[3];  // elements from the start of those sums
};

struct RespondRowsTask {
  const RowTerms* terms;  // of each row
  std::int64_t codewords;
  Unit unit;
  // 3x3: where the middle tap of each kernel row reads the tile's first pixel for unit 0, bytes from there to the
  // first and the last tap, and what is left of those two at the edges of the image (all ones or zero a pixel).
  const void* row[3];
  std::int64_t first_tap, last_tap;
  const void* first_mask;
  const void* last_mask;
  // 8x1x1: unit 0's first channel at the tile's first pixel, and bytes from channel to channel.
  const void* channels;
  std::int64_t channel_bytes;
  std::int64_t unit_bytes;  // from the planes of one unit to the next one's
  std::int64_t units;       // at least 1
  std::int64_t row_bytes;   // from row to row of the result
  void* rows;               // [row][unit][pixels of a tile]: stores follow each other
  void* scratch;            // kRespondScratch bytes
};

constexpr int kRespondScratch = 2 * 2 * kPatternsOfHalf * 64;  // the signed sums of a unit; rows are at most 64 bytes

struct GatherRowsTask {
  const void* rows;
  const std::uint16_t* offsets;  // [outputs / kOutputsPerStep][units][kOutputsPerStep], bytes from `rows`
  int units;
  std::int64_t outputs;  // a multiple of kOutputsPerStep
  int pixels;            // valid ones of the tile, at least 1
  void* sums;            // [outputs][pixels of a row]: added to
};

constexpr int kOutputsPerStep = 8;
constexpr int kBlockBytes = 24 * 1024;  // responses of a block of units: they stay in an L1 of 32 KiB
static_assert(kBlockBytes <= 65536, "offsets are 16 bits");

// ---- patches layout -------------------------------------------------------------------------------------

// Planes hold one bit per element, two planes per channel: in `plus` a 1 is +1, in `positive` a 1 is +1 or 0. They
// differ only where an activation is 0; then everything is done for both and added up, which counts a 0 as half a
// match.
struct StagePatchesTask {
  StageTask input;  // whose plane is not used
  std::uint64_t* plus;
  std::uint64_t* positive;
};

// The same for up to 64 channels of packed activations at once.
struct StagePackedTask {
  StageTask input;  // whose steps count words; x and plane are not used
  const std::uint64_t* words;
  const std::uint64_t* nonzero;  // or null
  int channels;                  // 1 to 64
  std::uint64_t* plus;           // of the first channel
  std::uint64_t* positive;
  std::int64_t channel_stride;  // words from channel to channel
};

// The codes of the patches that units see at kChunk pixels (there may be fewer: the rest is written too): for each,
// where the rows for its place in the image begin, plus the number whose bit t is tap t, all times slot / 8.
struct CodePatchesTask {
  const std::uint64_t* plane;  // of bits: unit 0's first
  std::int64_t unit_stride;    // words from unit to unit
  std::int64_t units;
  const std::int64_t* tap_bit;  // [taps] the bit of a unit's planes that the first pixel's tap is
  const std::uint64_t* inside;  // [taps] pixels whose tap is inside the image
  std::uint64_t outside;        // all ones or zero: the bits of the other taps
  int taps;
  const std::uint16_t* first;  // [kChunk]
  int code_shift;              // log2(slot / 8)
  std::uint16_t* codes;        // [p / kCodePixels * block_stride + unit * kCodePixels + p % kCodePixels]
  std::int64_t block_stride;
};

constexpr int kChunk = 64;
constexpr int kCodePixels = 8;

// A row of `slot` bytes says how many taps of a patch agree with each codeword: nine at most.
struct LookUpTask {
  const std::uint16_t* codes;     // [unit][kCodePixels]
  const std::uint8_t* responses;  // the row of a code is at 8 * code
  int slot;                       // bytes of a row: 8, 16, 32 or 64
  std::int64_t units;
  const std::uint8_t* positions;  // [outputs / 64][unit][64]
  std::int64_t outputs;           // a multiple of 64
  int pixels;                     // 1 to kCodePixels
  bool add;                       // to the sums, or write them
  std::uint16_t* sums;            // [pixel][outputs]
};

// ---- bits layout ----------------------------------------------------------------------------------------

// Activations are words of 64 channels: which are not zero (`used`), and which are +1 (`plus`). Words of pixels that
// are padding are 0.
struct MatchBitsTask {
  const std::uint64_t* used[4];    // of kBitsPixels pixels: the first tap's words
  std::int64_t plus;               // from there to the words of signs
  const std::int64_t* tap_offset;  // of each tap from the first
  int taps, words;
  const std::uint8_t* codes[4];  // with a code step: the first tap's codes
  int halves;                    // of words, that have channels: the weights of the others are left out then
  // The bits of weights, 1 is +1. [outputs / 8][tap][word][8]: words of 64 channels for 8 outputs. With a code step
  // [outputs / 32][tap][half][4][32]: bytes of 8 channels for 32 outputs, 0, 16, 1, 17 and so on.
  const void* weights;
  std::int64_t outputs;      // a multiple of kOutputsPerMatch
  int pixels;                // 1 to kBitsPixels
  std::uint16_t* different;  // [pixel][outputs]: how many activations differ from the weight in sign
  float* used_count;         // [pixel]: how many are not zero
};

// Four activations of each nibble of a word as a number that names a table, sixteen a word.
struct CodeBitsTask {
  const std::uint64_t* used;
  const std::uint64_t* plus;  // where nothing is used it says nothing
  std::int64_t words;
  std::uint8_t* codes;  // [word][16]
};

constexpr int kBitsPixels = 4;
constexpr int kOutputsPerMatch = 32;

// ---- finish ---------------------------------------------------------------------------------------------

// Where signs go: a pixel's words are `stride` after those of the pixel before it.
struct Words {
  std::uint64_t* plus;     // > 0, or >= 0 with sign_zero
  std::uint64_t* nonzero;  // plus or < 0; or null
  std::int64_t stride;
  const float* shift;  // of each channel, added before the sign is taken; or null
  bool sign_zero;
};

constexpr int kFinishPixels = 64;  // of a task, at most

struct FinishTask {
  // rows: of tiles, sums_stride elements apart, [output][pixels of a tile]; else [pixel][sums_stride]
  const void* sums;
  std::int64_t sums_stride;
  std::int64_t outputs;
  int pixels;
  // Other layouts than rows: the true sum is factor * sum + offset[pixel]. All are integers below 2^24.
  float factor;
  const float* offset;
  Activation activation;
  // Of output channel 0, and of the tile's first pixel; null is left out.
  const float* scale;
  const float* bias;
  const float* slope;
  const float* shift;
  const float* residual;
  std::int64_t residual_channel, residual_pixel;
  float* y;  // or null, where there are words
  std::int64_t y_channel, y_pixel;
  Words words;  // not of the rows layout; where y is null or its channels lie next to each other
};

// The signs of floats as words of 64 channels; bits after the last channel are 0.
struct PackTask {
  const float* x;  // channel 0 of the first pixel
  std::int64_t x_channel, x_pixel;
  std::int64_t channels;
  std::int64_t pixels;
  Words words;
};

// ---- the kernels ----------------------------------------------------------------------------------------

enum class Layout { kRows, kPatches, kBits };

struct RowsSteps {
  void (*stage)(const StageTask&);
  void (*respond)(const RespondRowsTask&);
  void (*gather)(const GatherRowsTask&);
};

struct PatchesSteps {
  bool (*stage)(const StagePatchesTask&);  // whether there are zeros; so does the next
  bool (*stage_packed)(const StagePackedTask&);
  void (*code)(const CodePatchesTask&);
  void (*look_up)(const LookUpTask&);
};

struct BitsSteps {                    // it is staged by `pack`
  void (*code)(const CodeBitsTask&);  // or null: words are matched as they are
  void (*match)(const MatchBitsTask&);
};

struct Kernel {
  const char* name;
  Level level;
  Activations activations;
  Layout layout;
  int pixels;  // of a tile
  int max_tau;
  RowsSteps rows;  // of the other layouts: null
  PatchesSteps patches;
  BitsSteps bits;
  void (*finish)(const FinishTask&);
  void (*pack)(const PackTask&);

  // Rows layout: of a staged value or response, and of a sum.
  constexpr std::int64_t element_bytes() const { return activations == Activations::kBinary ? 1 : 4; }
  constexpr std::int64_t sum_bytes() const { return activations == Activations::kBinary ? 2 : 4; }
};

}  // namespace subbit
