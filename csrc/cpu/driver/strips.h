// How a convolution is cut into tasks.
//
// The pixels of an output image are numbered row by row, and a *tile* is a run of kernel.pixels of them: it may
// begin and end inside a row, so a 7x7 image wastes no lanes. A *strip* is a run of tiles of one image and one
// group, and is what a thread works on.
#pragma once

#include <cstdint>

#include "core/problem.h"
#include "cpu/families/kernel.h"
#include "cpu/planner/problem.h"

namespace subbit {

// What a strip's sums or staged input may take of the second-level cache.
constexpr std::int64_t kStripBytes = 256 * 1024;
constexpr std::int64_t kMostStripPixels = 1024;

// A run of output pixels [begin, end) of one image and group, and the part of the image it lies in.
struct Strip {
  std::int64_t image, group;
  std::int64_t begin, end;
  std::int64_t first_row, rows;
  std::int64_t first_column, columns;  // all columns, or part of one row: StripPlan::reads_parts_of_rows
};

struct StripPlan {
  std::int64_t out_pixels;  // per image
  std::int64_t outputs;     // per group, padded
  std::int64_t tiles_per_strip;
  std::int64_t strips;  // per image and group
  bool reads_parts_of_rows;
  // A strip's, at most. Rows and columns are those of the output that it lies in.
  std::int64_t pixels, rows, columns;
};

StripPlan plan_strips(const ConvProblem& params, const Kernel& kernel, const Problem& problem);

// Strip number `task` of all images and groups.
Strip strip_of(std::int64_t task, const ConvProblem& params, const StripPlan& plan);

}  // namespace subbit
