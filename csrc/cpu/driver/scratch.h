// The scratch memory of a thread, laid out once per planned convolution.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "core/checked.h"

namespace subbit {

// An array that begins `at` bytes into scratch memory, at a multiple of a cache line.
template <class T>
struct ScratchArray {
  std::int64_t at = 0;

  T* in(std::byte* scratch) const { return reinterpret_cast<T*>(scratch + at); }
};

// Hands out consecutive arrays.
class ScratchAllocator {
 public:
  static constexpr std::int64_t kLine = 64;

  template <class T>
  ScratchArray<T> take(std::initializer_list<std::int64_t> sizes) {
    const std::int64_t bytes =
        checked_product({checked_product(sizes, "scratch memory"), std::int64_t{sizeof(T)}}, "scratch memory");
    const ScratchArray<T> array{bytes_};
    bytes_ += round_up(bytes, kLine);
    return array;
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::int64_t bytes_ = 0;
};

}  // namespace subbit
