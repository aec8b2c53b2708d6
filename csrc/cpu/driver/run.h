// One strip of one call, layout by layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/problem.h"
#include "cpu/driver/strips.h"
#include "cpu/weight.h"

namespace subbit {

// What is settled before the first call.
struct ConvPlan {
  ConvProblem params;
  Problem problem;
  Plan plan;
  StripPlan strips;
  const RowsForm* rows = nullptr;  // the form of the plan's layout
  const PatchesForm* patches = nullptr;
  const BitsForm* bits = nullptr;
  std::shared_ptr<const PatchMap> patch_map;

  const Kernel& kernel() const { return *plan.kernel; }
  std::int64_t in_group() const { return params.in_channels / params.groups; }
  std::int64_t out_group() const { return params.out_channels / params.groups; }
};

// A strip, and the memory that the thread has for it. Sums of a strip end with finish().
class Run {
 public:
  Run(const ConvPlan& plan, const ConvOperands& operands, const Strip& strip, std::byte* scratch)
      : plan_(plan),
        params_(plan.params),
        kernel_(plan.kernel()),
        strips_(plan.strips),
        operands_(operands),
        strip_(strip),
        scratch_(scratch) {}

 protected:
  // Where a pixel of the strip is in a plane whose first tap it is.
  std::int64_t place(std::int64_t pixel) const {
    return pixel - strip_.first_row * params_.out_width - strip_.first_column;
  }
  // Of the strip's image and group: the unit's first channel.
  const float* input(std::int64_t unit) const {
    return operands_.x + strip_.image * params_.x_n +
           (strip_.group * plan_.in_group() + unit * unit_channels(params_.unit)) * params_.x_c;
  }
  template <class T>
  T* scratch(std::int64_t at) const {
    return reinterpret_cast<T*>(scratch_ + at);
  }

  // Does what follows the sums of pixels [pixel, pixel + pixels), at most kFinishPixels; FinishTask says what they are.
  void finish(std::int64_t pixel, std::int64_t pixels, const void* sums, float factor, const float* offset) const;

  const ConvPlan& plan_;
  const ConvProblem& params_;
  const Kernel& kernel_;
  const StripPlan& strips_;
  const ConvOperands& operands_;
  const Strip& strip_;
  std::byte* scratch_;
};

void run_rows(const ConvPlan& plan, const ConvOperands& operands, const Strip& strip, std::byte* scratch);
void run_patches(const ConvPlan& plan, const ConvOperands& operands, const Strip& strip, std::byte* scratch);
void run_bits(const ConvPlan& plan, const ConvOperands& operands, const Strip& strip, std::byte* scratch);

}  // namespace subbit
