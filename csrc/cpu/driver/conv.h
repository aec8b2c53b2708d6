// A convolution whose sizes and weight are settled: selected, planned and prepared once, then run any number of times.
#pragma once

#include <cstdint>
#include <string>

#include "core/problem.h"
#include "cpu/driver/run.h"

namespace subbit {

class Conv {
 public:
  // The weight must outlive it. Throws std::invalid_argument where sizes overflow.
  Conv(const Weight& weight, const ConvProblem& params, Level level, const std::string& wanted);

  // Null where the dense convolution is quicker, which is the caller's to run.
  const Kernel* kernel() const { return plan_.plan.kernel; }

  // Safe to call from any number of threads at once.
  void operator()(const ConvOperands& operands) const;

  // Of one thread.
  std::int64_t scratch_bytes() const { return plan_.strips.scratch_bytes; }

  // Whether the input is packed activations.
  bool is_packed() const { return unpacks_ || plan_.params.x_is_packed; }

 private:
  Strip strip_of(std::int64_t task) const;
  void run(const ConvOperands& operands) const;
  void unpack(const ConvOperands& operands, float* x) const;
  void pack(const ConvOperands& operands, const float* y) const;

  ConvPlan plan_;
  std::int64_t tasks_ = 0;  // strips of all images and groups
  int threads_ = 1;
  bool unpacks_ = false;     // packed input that the layout does not read
  bool packs_last_ = false;  // see pack
};

}  // namespace subbit
