// How a convolution is cut into tasks, and how much scratch memory a task needs.
//
// The pixels of an output image are numbered row by row, and a *tile* is a run of kernel.pixels of them: it may
// begin and end inside a row, so a 7x7 image wastes no lanes. A *strip* is a run of tiles of one image and one
// group, and is what a thread works on: block of units by block of units it stages the input rows that the
// strip reads, and adds the block's responses to the sums of all its pixels and output channels.
#pragma once

#include <cstdint>

#include "core/conv_params.h"
#include "core/phases.h"
#include "cpu/select.h"

namespace subbit {

struct StripPlan {
  Phases rows, columns;     // of the kernel's taps
  std::int64_t out_pixels;  // of an image
  std::int64_t tiles_per_strip;
  std::int64_t strips;   // of an image and group
  std::int64_t outputs;  // of a group, padded

  // Planes of staged sums. A unit has planes_per_phase for every row phase.
  int planes_per_phase;
  std::int64_t plane_stride;  // elements
  std::int64_t unit_stride;   // elements

  // Bits layout: the padded part of the input that a strip reads, at most.
  std::int64_t region_rows, region_columns;

  // Scratch memory of one thread: offsets in bytes, all multiples of 64.
  std::int64_t line_stride;  // elements
  std::int64_t lines_at, planes_at, responses_at, sums_at;
  std::int64_t row_bytes;     // rows layout: from row to row of a block of responses
  std::int64_t table_stride;  // bytes of one pixel's tables
  std::int64_t scratch_bytes;
};

StripPlan plan_strips(const ConvParams& params, const Plan& plan, const Problem& problem);

}  // namespace subbit
