// A decoded weight together with the forms that kernels read, each made once, when first asked for.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "core/packed.h"
#include "cpu/families/family.h"

namespace subbit {

class Weight {
 public:
  explicit Weight(DecodedWeight decoded) : decoded_(std::move(decoded)) {}

  const DecodedWeight& decoded() const { return decoded_; }

  // The form that the plan's kernel reads. Safe to call from any number of threads. The reference stays valid as long
  // as the weight.
  const WeightForm& form(const Plan& plan, std::int64_t groups) const;

 private:
  using Key = std::pair<const Kernel*, std::int64_t>;

  DecodedWeight decoded_;
  mutable std::map<Key, std::unique_ptr<const WeightForm>> forms_;
};

// Guards the forms of all weights, and what forms keep. Held while the process forks, so that a child never inherits it
// locked by a thread that it does not have.
std::mutex& forms_mutex();

}  // namespace subbit
