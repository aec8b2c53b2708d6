#include "cpu/weight.h"

#include <pthread.h>

namespace subbit {
namespace {

std::mutex mutex;

const int kHeldAcrossFork = pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });

}  // namespace

std::mutex& forms_mutex() { return mutex; }

const WeightForm& Weight::form(const Plan& plan, std::int64_t groups) const {
  const std::lock_guard<std::mutex> lock(forms_mutex());
  auto& form = forms_[{plan.kernel, groups}];
  if (!form) form = plan.kernel->family().make_form(decoded_, plan, groups);
  return *form;
}

}  // namespace subbit
