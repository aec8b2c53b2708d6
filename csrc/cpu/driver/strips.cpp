#include "cpu/driver/strips.h"

#include <algorithm>

#include "core/checked.h"
#include "cpu/families/family.h"

namespace subbit {

StripPlan plan_strips(const ConvProblem& params, const Kernel& kernel, const Problem& problem) {
  const Family& family = kernel.family();
  StripPlan s{};
  s.out_pixels = params.out_height * params.out_width;
  s.outputs = family.padded_outputs(problem.outputs);

  const std::int64_t tiles = ceil_div(s.out_pixels, kernel.pixels);
  const std::int64_t most_tiles = std::max<std::int64_t>(1, family.strip_pixels(kernel, problem) / kernel.pixels);
  s.strips = ceil_div(tiles, most_tiles);
  if (params.batch * params.groups % params.threads != 0) {
    s.strips = std::min(tiles, round_up(s.strips, params.threads));
  }
  s.tiles_per_strip = ceil_div(tiles, s.strips);
  s.strips = ceil_div(tiles, s.tiles_per_strip);

  s.reads_parts_of_rows = family.reads_parts_of_rows(params);
  s.pixels = s.tiles_per_strip * kernel.pixels;
  s.rows = std::min(params.out_height, (s.pixels + params.out_width - 2) / params.out_width + 1);
  s.columns = s.rows == 1 && s.reads_parts_of_rows ? std::min(s.pixels, params.out_width) : params.out_width;
  return s;
}

Strip strip_of(std::int64_t task, const ConvProblem& params, const StripPlan& plan) {
  const std::int64_t width = params.out_width;
  Strip s;
  s.begin = task % plan.strips * plan.pixels;
  s.end = std::min(s.begin + plan.pixels, plan.out_pixels);
  s.group = task / plan.strips % params.groups;
  s.image = task / plan.strips / params.groups;
  s.first_row = s.begin / width;
  s.rows = (s.end - 1) / width - s.first_row + 1;
  const bool is_part_of_row = s.rows == 1 && plan.reads_parts_of_rows;
  s.first_column = is_part_of_row ? s.begin - s.first_row * width : 0;
  s.columns = is_part_of_row ? s.end - s.begin : width;
  return s;
}

}  // namespace subbit
