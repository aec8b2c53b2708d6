// What the small kernels around the product share: where a pixel is, and elements whose type is known at run time.
#pragma once

#include <cstdint>

#include "cuda/params.h"
#include "cuda/platform.h"

namespace subbit {

// core's ceil_div is the host's.
SUBBIT_HOST_DEVICE std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct Pixel {
  std::int64_t image, row, column;
};

// Pixel number i of images of such sizes, row by row. Numbers of 32 bits, which divide faster, where they are enough.
SUBBIT_HOST_DEVICE Pixel pixel_at(std::int64_t i, std::int64_t height, std::int64_t width) {
  if (i < (std::int64_t{1} << 31) && height < (std::int64_t{1} << 31) && width < (std::int64_t{1} << 31)) {
    const auto n = static_cast<std::uint32_t>(i), w = static_cast<std::uint32_t>(width);
    const std::uint32_t line = n / w, image = line / static_cast<std::uint32_t>(height);
    return {image, line - image * static_cast<std::uint32_t>(height), n - line * w};
  }
  const std::int64_t line = i / width, image = line / height;
  return {image, line - image * height, i - line * width};
}

SUBBIT_DEVICE float load_element(const void* from, Element element, std::int64_t i) {
  switch (element) {
    case Element::kFloat32:
      break;
    case Element::kFloat16:
      return to_float(static_cast<const __half*>(from)[i]);
    case Element::kBfloat16:
      return to_float(static_cast<const __nv_bfloat16*>(from)[i]);
  }
  return static_cast<const float*>(from)[i];
}

template <class T>
struct alignas(2 * sizeof(T)) ElementPair {
  T first, second;
};

template <class T>
SUBBIT_DEVICE void store_pair_as(void* to, std::int64_t i, float first, float second) {
  *reinterpret_cast<ElementPair<T>*>(static_cast<T*>(to) + i) = {from_float<T>(first), from_float<T>(second)};
}

SUBBIT_DEVICE void store_element(void* to, Element element, std::int64_t i, float v) {
  switch (element) {
    case Element::kFloat32:
      static_cast<float*>(to)[i] = v;
      return;
    case Element::kFloat16:
      static_cast<__half*>(to)[i] = from_float<__half>(v);
      return;
    case Element::kBfloat16:
      static_cast<__nv_bfloat16*>(to)[i] = from_float<__nv_bfloat16>(v);
      return;
  }
}

// Two neighbouring elements, of which the first is at a multiple of two.
SUBBIT_DEVICE void store_pair(void* to, Element element, std::int64_t i, float first, float second) {
  switch (element) {
    case Element::kFloat32:
      return store_pair_as<float>(to, i, first, second);
    case Element::kFloat16:
      return store_pair_as<__half>(to, i, first, second);
    case Element::kBfloat16:
      return store_pair_as<__nv_bfloat16>(to, i, first, second);
  }
}

}  // namespace subbit
