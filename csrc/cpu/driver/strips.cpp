#include "cpu/driver/strips.h"

#include <algorithm>

#include "core/checked.h"
#include "cpu/weight.h"

namespace subbit {
namespace {

// What a strip's sums (rows, bits) or staged input (patches) may take of the second-level cache.
constexpr std::int64_t kStripBytes = 256 * 1024;
constexpr std::int64_t kMostStripPixels = 1024;
constexpr std::int64_t kMostPatchPixels = 4096;  // one bit each
constexpr std::int64_t kLine = 64;

// Whole cache lines, and an odd number of them, so that planes do not fall on the same cache sets.
std::int64_t odd_lines(std::int64_t bytes) { return (ceil_div(bytes, kLine) | 1) * kLine; }

// Hands out consecutive pieces of a scratch buffer.
class Layouter {
 public:
  std::int64_t take(std::int64_t bytes) {
    const std::int64_t at = used_;
    used_ += round_up(bytes, kLine);
    return at;
  }
  std::int64_t used() const { return used_; }

 private:
  std::int64_t used_ = 0;
};

std::int64_t pixels_of_strip(const Kernel& kernel, const Problem& problem, std::int64_t outputs) {
  switch (kernel.layout) {
    case Layout::kRows:
      return std::min(kStripBytes / (outputs * kernel.sum_bytes()), kMostStripPixels);
    case Layout::kPatches:  // two bits for each channel
      return std::min(4 * kStripBytes / (problem.units * unit_channels(problem.unit)), kMostPatchPixels);
    case Layout::kBits: {  // two words for each 64 channels and input pixel, twice
      const std::int64_t words = ceil_div(problem.units * unit_channels(problem.unit), kWordChannels);
      return std::min(8 * kStripBytes / (32 * words * problem.spread * problem.spread), kMostStripPixels);
    }
  }
  return 0;
}

}  // namespace

StripPlan plan_strips(const ConvProblem& params, const Plan& plan, const Problem& problem) {
  const Kernel& kernel = *plan.kernel;
  const int taps = kernel_size(params.unit);

  StripPlan s{};
  s.planes = plan_planes(params);
  s.out_pixels = params.out_height * params.out_width;
  s.outputs = padded_outputs(kernel, params.out_channels / params.groups);

  const std::int64_t tiles = ceil_div(s.out_pixels, kernel.pixels);
  const std::int64_t most_tiles =
      std::max<std::int64_t>(1, pixels_of_strip(kernel, problem, s.outputs) / kernel.pixels);
  s.strips = ceil_div(tiles, most_tiles);
  if (params.batch * params.groups % params.threads != 0) {
    s.strips = std::min(tiles, round_up(s.strips, params.threads));
  }
  s.tiles_per_strip = ceil_div(tiles, s.strips);
  s.strips = ceil_div(tiles, s.tiles_per_strip);

  // A strip of p pixels touches at most this many output rows, each out_width wide (or is part of one row).
  const std::int64_t pixels = s.tiles_per_strip * kernel.pixels;
  const std::int64_t rows = std::min(params.out_height, (pixels + params.out_width - 2) / params.out_width + 1);
  const bool is_part_of_row = rows == 1 && !s.planes.shared;
  const std::int64_t columns = is_part_of_row ? std::min(pixels, params.out_width) : params.out_width;
  const Phases& phases = s.planes.rows;
  const std::int64_t row_shift = *std::max_element(phases.max_shift, phases.max_shift + phases.count);
  const std::int64_t plane_elements = checked_product({rows + row_shift, columns}, "scratch memory") + kernel.pixels;

  Layouter scratch;
  if (kernel.layout == Layout::kRows) {
    const std::int64_t element = kernel.element_bytes();
    const std::int64_t block = std::min<std::int64_t>(plan.units_per_block, problem.units);
    s.plane_stride = odd_lines(plane_elements * element + kPlaneSlack) / element;
    s.unit_stride = s.plane_stride * s.planes.planes;
    s.row_bytes = block * kernel.pixels * element;
    s.mask_bytes = round_up(pixels * element, kLine);
    s.sums_at = scratch.take(checked_product({pixels, s.outputs, kernel.sum_bytes()}, "scratch memory"));
    scratch.take(kPlaneSlack);
    s.planes_at = scratch.take(checked_product({block, s.unit_stride, element}, "scratch memory"));
    s.responses_at = scratch.take(s.row_bytes * problem.codewords);
    s.masks_at = scratch.take(2 * s.mask_bytes);
    s.work_at = scratch.take(kRespondScratch);
  } else if (kernel.layout == Layout::kPatches) {
    s.plane_stride = 2 + ceil_div(plane_elements + kChunk, 64);
    s.unit_stride = s.plane_stride * s.planes.planes;
    s.planes_at = scratch.take(checked_product({2, problem.units, s.unit_stride, 8}, "scratch memory"));
    s.responses_at = scratch.take(checked_product({kChunk, problem.units, 2}, "scratch memory"));  // codes
    s.sums_at = scratch.take(checked_product({kChunk, s.outputs, 2}, "scratch memory"));
    s.work_at = scratch.take(kChunk * std::int64_t{sizeof(float)});
    s.packs_input = !params.x_is_packed && params.x_c == 1 && params.x_w > 1 && params.x_h == params.width * params.x_w;
    if (s.packs_input) {
      const std::int64_t read = positions_read(rows, taps, params.stride_h, params.dilation_h);
      const std::int64_t words = ceil_div(params.in_channels / params.groups, kWordChannels);
      s.packed_at =
          scratch.take(checked_product({std::min(read, params.height), params.width, words, 16}, "packed input"));
    }
  } else {
    s.region_rows = positions_read(rows, taps, params.stride_h, params.dilation_h);
    const std::int64_t region = rows == 1 ? std::min(pixels, params.out_width) : params.out_width;
    s.region_columns = positions_read(region, taps, params.stride_w, params.dilation_w);
    const std::int64_t words = ceil_div(problem.units * unit_channels(params.unit), 64);
    s.sums_at = scratch.take(checked_product({kFinishPixels, s.outputs, 2}, "scratch memory"));
    s.planes_at = scratch.take(checked_product({s.region_rows, s.region_columns, words, 16}, "scratch memory"));
    s.responses_at = scratch.take(checked_product({s.region_rows, s.region_columns, words, 16}, "scratch memory"));
    if (kernel.bits.code) {
      s.codes_at = scratch.take(checked_product({s.region_rows, s.region_columns, words, 16}, "scratch memory"));
    }
    s.work_at = scratch.take(kFinishPixels * std::int64_t{sizeof(float)});
  }
  if (params.packs) s.floats_at = scratch.take(checked_product({s.outputs, kFinishPixels, 4}, "scratch memory"));
  s.scratch_bytes = scratch.used();
  return s;
}

}  // namespace subbit
