#include "cpu/strips.h"

#include <algorithm>

#include "core/checked.h"
#include "cpu/weight.h"

namespace subbit {
namespace {

// What a strip's sums may take of the second-level cache.
constexpr std::int64_t kSumsBytes = 256 * 1024;
constexpr std::int64_t kMaxStripPixels = 1024;
constexpr std::int64_t kLine = 64;

int planes_per_phase(Layout layout, Unit unit) {
  if (layout == Layout::kRows) return unit == Unit::k3x3 ? kPatternsOfRow : 2 * kPatternsOfHalf;
  return unit == Unit::k3x3 ? 1 : kCodeParts;
}

// Whole cache lines, and an odd number of them, so that planes do not fall on the same cache sets.
std::int64_t plane_bytes(std::int64_t bytes) {
  const std::int64_t lines = ceil_div(bytes + kStageSlack, kLine);
  return (lines | 1) * kLine;
}

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

}  // namespace

StripPlan plan_strips(const ConvParams& params, const Plan& plan, const Problem& problem) {
  const Kernel& kernel = *plan.kernel;
  const bool bytes = kernel.activations == Activations::kBinary;
  const std::int64_t element = bytes ? 1 : sizeof(float);
  const std::int64_t sum = bytes ? sizeof(std::int16_t) : sizeof(float);
  const int taps = kernel_size(params.unit);

  StripPlan s{};
  s.rows = phases(taps, params.stride_h, params.dilation_h);
  s.columns = phases(taps, params.stride_w, params.dilation_w);
  s.out_pixels = params.out_height * params.out_width;
  s.outputs = padded_outputs(kernel, params.out_channels / params.groups);

  const std::int64_t tiles = ceil_div(s.out_pixels, kernel.pixels);
  const std::int64_t strip_pixels = std::min(kSumsBytes / (s.outputs * sum), kMaxStripPixels);
  const std::int64_t most_tiles = std::max<std::int64_t>(1, strip_pixels / kernel.pixels);
  s.strips = ceil_div(tiles, most_tiles);
  if (params.batch * params.groups % params.threads != 0) {
    s.strips = std::min(tiles, round_up(s.strips, params.threads));
  }
  s.tiles_per_strip = ceil_div(tiles, s.strips);
  s.strips = ceil_div(tiles, s.tiles_per_strip);

  // A strip of p pixels touches at most this many output rows, each out_width wide (or is part of one row).
  const std::int64_t pixels = s.tiles_per_strip * kernel.pixels;
  const std::int64_t rows = std::min(params.out_height, (pixels + params.out_width - 2) / params.out_width + 1);
  const std::int64_t columns = rows == 1 ? std::min(pixels, params.out_width) : params.out_width;
  const std::int64_t row_shift = *std::max_element(s.rows.max_shift, s.rows.max_shift + s.rows.count);
  const std::int64_t column_shift = *std::max_element(s.columns.max_shift, s.columns.max_shift + s.columns.count);

  const std::int64_t plane = plane_bytes(((rows + row_shift) * columns + kernel.pixels) * element);
  s.planes_per_phase = planes_per_phase(kernel.layout, params.unit);
  s.plane_stride = plane / element;
  s.unit_stride = s.plane_stride * s.planes_per_phase * s.rows.count;

  const std::int64_t line = plane_bytes((columns + column_shift) * element);
  s.line_stride = line / element;

  s.region_rows = (rows - 1) * params.stride_h + (taps - 1) * params.dilation_h + 1;
  s.region_columns = (columns - 1) * params.stride_w + (taps - 1) * params.dilation_w + 1;

  Layouter scratch;
  s.sums_at = scratch.take(checked_product({pixels, s.outputs, sum}, "scratch memory"));
  if (kernel.layout == Layout::kBits) {
    const std::int64_t words = ceil_div(problem.units * unit_channels(params.unit), 64);
    s.planes_at = scratch.take(checked_product({s.region_rows, s.region_columns, words, 16}, "scratch memory"));
    s.scratch_bytes = scratch.used();
    return s;
  }
  const std::int64_t block = std::min<std::int64_t>(plan.units_per_block, problem.units);
  s.lines_at = scratch.take(line * kMaxLines);
  s.planes_at = scratch.take(checked_product({block, s.unit_stride, element}, "scratch memory"));
  if (kernel.layout == Layout::kRows) {
    s.row_bytes = block * kernel.pixels * element;
    s.responses_at = scratch.take(s.row_bytes * problem.codewords);
  } else {
    s.table_stride = round_up(block * table_slot(problem.codewords), 64);
    s.responses_at = scratch.take(s.table_stride * kernel.pixels);
  }
  s.scratch_bytes = scratch.used();
  return s;
}

}  // namespace subbit
