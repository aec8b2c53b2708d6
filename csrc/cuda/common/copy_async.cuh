// Copies from global to shared memory that go on while a thread does other things (cp.async), and on the host the same:
// there a copy is made when it is waited for, so that a wait that is missing shows.
#pragma once

#include <cstdint>

#include "cuda/common/platform.h"

#if !defined(__CUDACC__)
#include <deque>
#endif

namespace subbit {

#if defined(__CUDACC__)

// kBytes, 8 or 16, both sides aligned to them; zeros where not valid (`from` must be readable memory all the same).
template <int kBytes>
SUBBIT_DEVICE void copy_async(void* shared, const void* from, bool valid) {
  static_assert(kBytes == 8 || kBytes == 16);
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
  }
}

// Ends a group of this thread's copies.
SUBBIT_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's groups but for the last kGroups.
template <int kGroups>
SUBBIT_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

#else

namespace shim {

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool valid;
};
using CopyGroups = std::deque<std::vector<Copy> >;  // the last one is open

inline CopyGroups& copy_groups() {
  static PerThread<CopyGroups> of_threads;
  CopyGroups& groups = of_threads.mine();
  if (groups.empty()) groups.emplace_back();
  return groups;
}

}  // namespace shim

template <int kBytes>
void copy_async(void* shared, const void* from, bool valid) {
  const auto is_aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % kBytes == 0; };
  if (!is_aligned(shared) || !is_aligned(from)) throw std::runtime_error("a copy is not aligned");
  shim::Block& block = *shim::Block::current_block();
  block.async().begin_write(block.offset(shared));
  shim::copy_groups().back().push_back({shared, from, kBytes, valid});
}
inline void commit_copies() { shim::copy_groups().emplace_back(); }
template <int kGroups>
void wait_for_copies() {
  shim::CopyGroups& groups = shim::copy_groups();
  shim::Block& block = *shim::Block::current_block();
  for (; groups.size() > kGroups + 1; groups.pop_front()) {
    for (const shim::Copy& copy : groups.front()) {
      std::memset(copy.to, 0, copy.bytes);
      if (copy.valid) std::memcpy(copy.to, copy.from, copy.bytes);
      block.async().end_write(block.offset(copy.to), block.running());
    }
  }
}

#endif

}  // namespace subbit
