// A convolution whose sizes and weight are settled: selected, planned and prepared once, then run any number of times.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/problem.h"
#include "cpu/driver/planned.h"
#include "cpu/weight.h"

namespace subbit {

class Conv {
 public:
  // The weight must outlive it. Throws std::invalid_argument where sizes overflow.
  Conv(const Weight& weight, const ConvProblem& params, Level level, const std::string& wanted);

  // Null where the dense convolution is quicker, which is the caller's to run.
  const Kernel* kernel() const { return kernel_; }

  // Safe to call from any number of threads at once.
  void operator()(const ConvOperands& operands) const;

  // Per thread.
  std::int64_t scratch_bytes() const { return planned_ ? planned_->scratch_bytes() : 0; }

  // Whether the input is packed activations.
  bool is_packed() const { return is_packed_; }

 private:
  const ConvProblem& params() const { return planned_->plan().params; }
  void run(const ConvOperands& operands) const;
  void unpack(const ConvOperands& operands, float* x) const;
  void pack(const ConvOperands& operands, const float* y) const;

  const Kernel* kernel_ = nullptr;
  std::unique_ptr<const PlannedConv> planned_;  // null also where the output is empty
  std::int64_t tasks_ = 0;                      // strips of all images and groups
  int threads_ = 1;
  bool is_packed_ = false;
  bool unpacks_ = false;     // packed input that the family does not read
  bool packs_last_ = false;  // see pack
};

}  // namespace subbit
