// A convolution in the hands of a family: planned once, run strip by strip.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/problem.h"
#include "cpu/driver/scratch.h"
#include "cpu/driver/strips.h"
#include "cpu/families/kernel.h"
#include "cpu/planner/problem.h"

namespace subbit {

// What is settled before the first call.
struct ConvPlan {
  ConvProblem params;
  Problem problem;
  Plan plan;
  StripPlan strips;

  const Kernel& kernel() const { return *plan.kernel; }
  std::int64_t in_group() const { return params.in_channels / params.groups; }
  std::int64_t out_group() const { return params.out_channels / params.groups; }
};

class PlannedConv {
 public:
  explicit PlannedConv(const ConvPlan& plan) : plan_(plan) {
    if (plan.params.packs) floats_ = scratch_.take<float>({plan.strips.outputs, kFinishPixels});
  }
  virtual ~PlannedConv() = default;

  const ConvPlan& plan() const { return plan_; }

  // Per thread.
  std::int64_t scratch_bytes() const { return scratch_.bytes(); }

  // Safe to call from any number of threads at once, each with scratch memory of its own.
  virtual void run(const ConvOperands& operands, const Strip& strip, std::byte* scratch) const = 0;

 protected:
  ConvPlan plan_;
  ScratchAllocator scratch_;

 private:
  friend class StripRun;
  ScratchArray<float> floats_;  // outputs that are only packed, on their way
};

// Sums as a family's finish step reads them: FinishTask says what these are.
struct Sums {
  const void* sums;
  std::int64_t stride;
  float factor;
  const float* offset;
  bool with_signs;  // whether finish stores words, where it has channels side by side
};

// One strip of one call, and the memory that the thread has for it. Its sums end with finish().
class StripRun {
 public:
  StripRun(const PlannedConv& conv, const ConvOperands& operands, const Strip& strip, std::byte* scratch)
      : plan_(conv.plan()),
        params_(plan_.params),
        kernel_(plan_.kernel()),
        strips_(plan_.strips),
        operands_(operands),
        strip_(strip),
        scratch_(scratch),
        floats_(conv.floats_) {}

 protected:
  // Where a pixel of the strip is in a plane whose first tap it is.
  std::int64_t place(std::int64_t pixel) const {
    return pixel - strip_.first_row * params_.out_width - strip_.first_column;
  }
  // The unit's first channel, of the strip's image and group.
  const float* input(std::int64_t unit) const {
    return operands_.x + strip_.image * params_.x_n +
           (strip_.group * plan_.in_group() + unit * unit_channels(params_.unit)) * params_.x_c;
  }
  // Does what follows the sums of pixels [pixel, pixel + pixels), at most kFinishPixels.
  void finish(std::int64_t pixel, std::int64_t pixels, const Sums& sums) const;

  const ConvPlan& plan_;
  const ConvProblem& params_;
  const Kernel& kernel_;
  const StripPlan& strips_;
  const ConvOperands& operands_;
  const Strip& strip_;
  std::byte* scratch_;

 private:
  ScratchArray<float> floats_;
};

}  // namespace subbit
