// How the sharing kernel is cut into blocks: a pure function of the problem and the device's sizes.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/common/params.h"

namespace subbit {

struct DeviceLimits {
  int multiprocessors = 0;
  int shared_per_block = 0, shared_per_multiprocessor = 0;  // bytes
};

constexpr int kWarp = 32;
constexpr int kSharingWarps = 16;         // at most
constexpr int kSharingAccumulators = 64;  // of a thread: words of sums
constexpr int kSharingUnits = 4;          // at most, in a block of units: their indices fit 32 bits

// A word of sums is one pixel's float32, or two pixels' 16-bit integers (binary): low = even, high = odd.
// The latter holds 2^15 / 9 units; problems with more run as floats, whose sums are exact up to 2^24.
constexpr std::int64_t kSharingMostUnits16 = 3640;

// A thread block has 32 * words_per_lane * pixels_per_word pixels and warps * (64 / words_per_lane) outputs: all its
// warps have the same pixels, each has outputs of its own.
struct SharingTile {
  bool two_per_word = false;  // sums, of two pixels; else one
  int words_per_lane = 0;     // 4 or 2; 0: no tile fits the device
  int warps = 0;
  int units = 0;    // of a block of units
  int buffers = 0;  // of responses: with 2, one is filled while the other is gathered from
  int parts = 0;    // thread blocks that share a group's outputs
  std::int64_t pixel_tiles = 0;

  // Places in shared memory, in bytes.
  int masks = 0, terms = 0, indices = 0, sums = 0, responses = 0;
  int shared_bytes = 0;

  int warp_outputs() const { return kSharingAccumulators / words_per_lane; }
  int outputs() const { return warps * warp_outputs(); }
  int pixels() const { return kWarp * words_per_lane * (two_per_word ? 2 : 1); }
  int row_bytes() const { return kWarp * words_per_lane * 4; }
  std::int64_t blocks(const CudaParams& params) const { return pixel_tiles * parts * params.conv.groups; }
};

constexpr int sharing_parts(Unit unit) { return unit == Unit::k3x3 ? 3 : 2; }              // rows; half units
constexpr int sharing_part_taps(Unit unit) { return unit == Unit::k3x3 ? 3 : 4; }          // of one
constexpr int sharing_part_sums(Unit unit) { return 1 << (sharing_part_taps(unit) - 1); }  // signless

// Words of a lane at most. For two pixels per word, of an 8x1x1 unit, 4 would be 32 loads under way, which with the
// sums are more than 128 registers.
constexpr int sharing_most_words(Unit unit, bool two_per_word) { return unit == Unit::k8x1x1 && two_per_word ? 2 : 4; }

// Whether there is a kernel: pixels and channels count in 32 bits, whatever the strides.
bool can_run_sharing(const CudaParams& params);

// Every tile that fits the device.
std::vector<SharingTile> sharing_tiles(const CudaParams& params, const DeviceLimits& limits);

// Cycles that a multiprocessor's shared memory takes for one unit of all its blocks, the bottleneck (128 bytes per
// cycle). A row of responses takes words_per_lane of them:
//   gather    one row per output
//   respond   a codeword's row is written, and about 2.2 rows of sums are read for it (kernel.cuh)
//   sums      12 or 16 rows written, from as many loads; about 25 in all
// Fewer than 4 warps, one per scheduler, cannot keep it busy. Expected from arithmetic, not yet measured.
double sharing_cycles(const SharingTile& tile, const CudaParams& params, const DeviceLimits& limits);

// The one of them that is expected to take the least time. Its words_per_lane is 0 where none fits.
SharingTile plan_sharing(const CudaParams& params, const DeviceLimits& limits);

}  // namespace subbit
