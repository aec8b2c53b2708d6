// Runs tasks on the OpenMP threads that torch has already started.
#pragma once

#include <atomic>
#include <cstdint>

namespace subbit {

// True in a child of the process that loaded this library. OpenMP's threads do not survive fork(), and a
// parallel region in the child would wait for them for ever, so there everything runs serially.
bool is_forked_child();

// Calls run(thread, task) for every task in [0, tasks), thread < threads <= tasks. run must not throw.
template <class Run>
void parallel(int threads, std::int64_t tasks, const Run& run) {
  if (threads <= 1 || is_forked_child()) {
    for (std::int64_t task = 0; task < tasks; ++task) run(0, task);
    return;
  }
  std::atomic<std::int64_t> next{0};
  std::atomic<int> started{0};
#pragma omp parallel num_threads(threads)
  {
    const int thread = started.fetch_add(1);
    for (std::int64_t task; (task = next.fetch_add(1)) < tasks;) run(thread, task);
  }
}

}  // namespace subbit
