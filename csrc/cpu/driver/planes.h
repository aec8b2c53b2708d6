// The planes that a unit is staged in, and where in them its taps read.
//
// Output pixels are numbered row by row, without gaps, and a tile may begin and end anywhere. So that a tap reads a
// tile's inputs as one run of neighbours, a plane has as many columns as the output, and no gaps between rows either.
//
//   shared  taps of the same phase of columns (core/phases.h) read the same plane, one element to the left or right.
//           At the edge of the image that is the neighbour row's element, which a mask takes away. For all the usual
//           convolutions, whose output has as many columns as the phase.
//   own     every tap of a kernel row has a plane of its own, padding included.
//
// 8x1x1 units have a plane per channel.
#pragma once

#include <cstdint>

#include "core/phases.h"
#include "core/problem.h"
#include "cpu/driver/strips.h"
#include "cpu/families/stage_task.h"

namespace subbit {

struct PlanePlan {
  static constexpr int kMaxPlanes = 9;

  Phases rows;
  bool shared;
  int planes;                 // per unit: for each phase of rows, for each of its columns; or channels
  int planes_of_phase;        // of rows
  int tap_plane[3];           // of columns
  std::int64_t tap_shift[3];  // elements, from the plane's beginning of a row
  std::int64_t column[3];     // of the image, may be negative: element 0 of the planes of a phase

  // Where tap (row, column) of output pixel 0 of a strip reads: a plane and an element of it.
  int plane_of_tap(int row, int column) const { return rows.phase_of_tap[row] * planes_of_phase + tap_plane[column]; }
  std::int64_t element_of_tap(int row, int column, std::int64_t columns) const {
    return rows.shift_of_tap[row] * columns + tap_shift[column];
  }
};

PlanePlan plan_planes(const ConvProblem& params);

// The elements of a strip's plane, at most, and of a tile that begins in it.
std::int64_t plane_elements(const PlanePlan& planes, const StripPlan& strips, const Kernel& kernel);

// How a strip's units are staged: a task per plane, which differs from unit to unit in its addresses alone.
struct Staging {
  StageTask task[PlanePlan::kMaxPlanes];
  std::int64_t image_offset[PlanePlan::kMaxPlanes];  // of the task's x, from the unit's first channel
};

Staging plan_staging(const ConvProblem& params, const PlanePlan& plan, const Strip& strip);

}  // namespace subbit
