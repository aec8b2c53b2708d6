// What the small kernels around the product share: where a pixel is, and elements whose type is known at run time.
#pragma once

#include <cstdint>

#include "cuda/common/params.h"
#include "cuda/common/platform.h"

namespace subbit {

// core's ceil_div is the host's.
SUBBIT_HOST_DEVICE std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct Pixel {
  std::int64_t image, row, column;
};

// Pixel number i of images of such sizes, row by row; all in 32 bits.
SUBBIT_HOST_DEVICE Pixel pixel_of(std::uint32_t i, std::int64_t height, std::int64_t width) {
  const auto h = static_cast<std::uint32_t>(height), w = static_cast<std::uint32_t>(width);
  const std::uint32_t line = i / w, image = line / h;
  return {image, line - image * h, i - line * w};
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

}  // namespace subbit
