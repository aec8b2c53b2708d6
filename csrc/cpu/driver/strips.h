// How a convolution is cut into tasks, and how much scratch memory a task needs.
//
// The pixels of an output image are numbered row by row, and a *tile* is a run of kernel.pixels of them: it may
// begin and end inside a row, so a 7x7 image wastes no lanes. A *strip* is a run of tiles of one image and one
// group, and is what a thread works on.
#pragma once

#include <cstdint>

#include "core/problem.h"
#include "cpu/driver/planes.h"
#include "cpu/planner/select.h"

namespace subbit {

struct StripPlan {
  PlanePlan planes;         // not of the bits layout
  std::int64_t out_pixels;  // of an image
  std::int64_t tiles_per_strip;
  std::int64_t strips;   // of an image and group
  std::int64_t outputs;  // of a group, padded

  // Elements (rows layout) or words of bits (patches layout) from plane to plane and from unit to unit.
  std::int64_t plane_stride, unit_stride;
  std::int64_t row_bytes;  // rows layout: from row to row of a block of responses

  // Bits layout: the padded part of the input that a strip reads, at most.
  std::int64_t region_rows, region_columns;

  bool packs_input;  // patches layout: the input is packed before it is staged

  // Scratch memory of one thread: offsets in bytes, all multiples of 64. What they mean is a matter of the layout.
  std::int64_t planes_at, responses_at, sums_at, masks_at, work_at, floats_at, packed_at, codes_at;
  std::int64_t mask_bytes;
  std::int64_t scratch_bytes;
};

StripPlan plan_strips(const ConvProblem& params, const Plan& plan, const Problem& problem);

}  // namespace subbit
