// Which calls the product runs by wgmma (wgmma.cuh), and in which tiles: for the host, on every architecture.
#pragma once

#include "cuda/product/run.cuh"

namespace subbit {

template <int kPixels_, int kStages_>
struct WgmmaTile {
  static constexpr int kOutputs = 128, kPixels = kPixels_, kStages = kStages_;
};
using WgmmaFloat16Tile = WgmmaTile<128, 4>;
using WgmmaFloat32Tile = WgmmaTile<64, 3>;  // half the pixels: the sums of a stage take registers of their own

// Only Hopper has wgmma; later devices have other instructions in its place.
constexpr int kWgmmaCapability = 90;

inline bool runs_wgmma(const CudaParams& params) {
  if (params.capability != kWgmmaCapability || is_binary(params)) return false;
  return params.element == Element::kFloat32 ? fills_device<WgmmaFloat32Tile>(params)
                                             : fills_device<WgmmaFloat16Tile>(params);
}

}  // namespace subbit
