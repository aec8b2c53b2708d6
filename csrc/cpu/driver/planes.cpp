#include "cpu/driver/planes.h"

#include <algorithm>

#include "core/checked.h"

namespace subbit {
namespace {

// The steps from `at` until 0 or more is reached.
std::int64_t steps_to_zero(std::int64_t at, std::int64_t step) { return at >= 0 ? 0 : ceil_div(-at, step); }

// Shared planes begin with the first element of their phase that lies in the image. That must leave no tap more than
// one element away, and no element of the image outside the plane.
bool share_planes(const ConvProblem& params, const Phases& columns, PlanePlan& plan) {
  plan.planes_of_phase = columns.count;
  for (int phase = 0; phase < columns.count; ++phase) {
    const std::int64_t padded = columns.first[phase] - params.pad_w;
    const std::int64_t skipped = steps_to_zero(padded, params.stride_w);
    plan.column[phase] = padded + skipped * params.stride_w;
    if (steps_to_zero(plan.column[phase] - params.width, params.stride_w) > params.out_width) return false;
    for (int t = 0; t < 3; ++t) {
      if (columns.phase_of_tap[t] != phase) continue;
      plan.tap_plane[t] = phase;
      plan.tap_shift[t] = columns.shift_of_tap[t] - skipped;
    }
  }
  const auto is_between = [](std::int64_t v, std::int64_t least, std::int64_t most) { return v >= least && v <= most; };
  return is_between(plan.tap_shift[0], -1, 0) && plan.tap_shift[1] == 0 && is_between(plan.tap_shift[2], 0, 1);
}

}  // namespace

PlanePlan plan_planes(const ConvProblem& params) {
  PlanePlan plan{};
  plan.rows = phases(kernel_size(params.unit), params.stride_h, params.dilation_h);
  if (params.unit == Unit::k8x1x1) {
    plan.planes = unit_channels(params.unit);
    plan.column[0] = -params.pad_w;
    return plan;
  }
  plan.shared = share_planes(params, phases(3, params.stride_w, params.dilation_w), plan);
  if (!plan.shared) {
    plan.planes_of_phase = 3;
    for (int t = 0; t < 3; ++t) {
      plan.tap_plane[t] = t;
      plan.tap_shift[t] = 0;
      plan.column[t] = t * params.dilation_w - params.pad_w;
    }
  }
  plan.planes = plan.rows.count * plan.planes_of_phase;
  return plan;
}

std::int64_t plane_elements(const PlanePlan& planes, const StripPlan& strips, const Kernel& kernel) {
  const std::int64_t* shifts = planes.rows.max_shift;
  const std::int64_t row_shift = *std::max_element(shifts, shifts + planes.rows.count);
  return checked_product({strips.rows + row_shift, strips.columns}, "scratch memory") + kernel.pixels;
}

Staging plan_staging(const ConvProblem& params, const PlanePlan& plan, const Strip& strip) {
  Staging staging{};
  const bool is_3x3 = params.unit == Unit::k3x3;
  for (int i = 0; i < plan.planes; ++i) {
    const int phase = is_3x3 ? i / plan.planes_of_phase : 0, channel = is_3x3 ? 0 : i;
    StageTask& task = staging.task[i];
    task.step = params.stride_w * params.x_w;
    task.row_step = params.stride_h * params.x_h;
    task.sign_zero = params.sign_zero;

    // Row j of the plane is image row first_row + j * stride.
    const std::int64_t first_row = strip.first_row * params.stride_h + plan.rows.first[phase] - params.pad_h;
    task.rows = strip.rows + plan.rows.max_shift[phase];
    task.inside_begin = std::min(steps_to_zero(first_row, params.stride_h), task.rows);
    task.inside_end =
        std::clamp(steps_to_zero(first_row - params.height, params.stride_h), task.inside_begin, task.rows);

    const std::int64_t first_column =
        strip.first_column * params.stride_w + plan.column[is_3x3 ? i % plan.planes_of_phase : 0];
    task.columns = strip.columns;
    task.before = std::min(steps_to_zero(first_column, params.stride_w), task.columns);
    task.count = std::clamp(steps_to_zero(first_column - params.width, params.stride_w), task.before, task.columns) -
                 task.before;
    if (task.count == 0) task.inside_end = task.inside_begin;
    if (task.inside_begin == task.inside_end) continue;
    staging.image_offset[i] = channel * params.x_c + (first_row + task.inside_begin * params.stride_h) * params.x_h +
                              (first_column + task.before * params.stride_w) * params.x_w;
  }
  return staging;
}

}  // namespace subbit
