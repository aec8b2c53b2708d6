// Sizes come from callers: products are checked before anything is allocated from them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace subbit {

// The product of non-negative sizes. Throws std::invalid_argument, naming `what`, when a factor is
// negative or the product exceeds 2^47 (more than any address space this runs in can hold).
inline std::int64_t checked_product(std::initializer_list<std::int64_t> factors, const char* what) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 47;
  bool any_zero = false;
  for (std::int64_t factor : factors) {
    if (factor < 0) {
      throw std::invalid_argument(std::string(what) + ": sizes must not be negative, got " + std::to_string(factor));
    }
    any_zero |= factor == 0;
  }
  if (any_zero) return 0;
  std::int64_t product = 1;
  for (std::int64_t factor : factors) {
    if (factor > kLimit / product) {
      throw std::invalid_argument(std::string(what) + ": the product of sizes overflows (limit 2^47)");
    }
    product *= factor;
  }
  return product;
}

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

}  // namespace subbit
