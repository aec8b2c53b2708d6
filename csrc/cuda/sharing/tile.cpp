#include "cuda/sharing/tile.h"

#include <algorithm>

namespace subbit {
namespace {

// Lays out shared memory for a block of so many units.
void place(SharingTile& tile, const CudaParams& params, int units, int buffers) {
  tile.units = units;
  tile.buffers = buffers;
  const Unit unit = params.conv.unit;
  const auto aligned = [](int bytes) { return static_cast<int>(round_up(bytes, 128)); };
  tile.masks = tile.pixels() * 8;  // after the pixels' offsets
  tile.terms = aligned(tile.masks + tile.pixels() * 2);
  tile.indices = aligned(tile.terms + params.codewords * 16);
  tile.sums = aligned(tile.indices + 2 * units * tile.outputs());
  tile.responses = tile.sums + 2 * units * sharing_parts(unit) * sharing_part_sums(unit) * tile.row_bytes();
  const int end = tile.responses + buffers * units * params.codewords * tile.row_bytes();
  // At the end, every warp passes its sums through rows of its own, which begin where the memory does.
  tile.shared_bytes = std::max(end, tile.outputs() * kWarp * 4);
}

// As many units as leave room for 16 warps on the multiprocessor; one buffer only where two do not fit a block.
bool fit(SharingTile& tile, const CudaParams& params, const DeviceLimits& limits) {
  const int share =
      std::min(limits.shared_per_block, limits.shared_per_multiprocessor / (kSharingWarps / tile.warps) - 1024);
  for (int units = kSharingUnits; units >= 1; units /= 2) {
    place(tile, params, units, 2);
    if (tile.shared_bytes <= share) return true;
  }
  for (int buffers = 2; buffers >= 1; --buffers) {
    place(tile, params, 1, buffers);
    if (tile.shared_bytes <= limits.shared_per_block) return true;
  }
  return false;
}

}  // namespace

bool can_run_sharing(const CudaParams& params) {
  constexpr std::int64_t kMostChannels = std::int64_t{1} << 27, kMostPixels = (std::int64_t{1} << 31) - 1;
  const ConvProblem& conv = params.conv;
  return params.codewords >= 1 && params.codewords <= kMaxCodewords && params.units() >= 1 &&
         conv.in_channels <= kMostChannels && conv.out_channels <= kMostChannels &&
         checked_product({conv.batch, conv.out_height, conv.out_width}, "output") <= kMostPixels;
}

std::vector<SharingTile> sharing_tiles(const CudaParams& params, const DeviceLimits& limits) {
  const ConvProblem& conv = params.conv;
  const std::int64_t outputs = params.group_outputs();
  std::vector<SharingTile> tiles;
  for (int words : {4, 2}) {
    for (int warps = kSharingWarps; warps >= 1; warps /= 2) {
      SharingTile tile;
      tile.two_per_word = conv.activations == Activations::kBinary && params.units() <= kSharingMostUnits16;
      if (words > sharing_most_words(conv.unit, tile.two_per_word)) continue;
      tile.words_per_lane = words;
      tile.parts = static_cast<int>(ceil_div(outputs, std::int64_t{warps} * tile.warp_outputs()));
      tile.warps = static_cast<int>(ceil_div(ceil_div(outputs, tile.parts), tile.warp_outputs()));
      tile.pixel_tiles = ceil_div(conv.batch * conv.out_height * conv.out_width, tile.pixels());
      if (fit(tile, params, limits)) tiles.push_back(tile);
    }
  }
  return tiles;
}

double sharing_cycles(const SharingTile& tile, const CudaParams& params, const DeviceLimits& limits) {
  const std::int64_t rounds = ceil_div(tile.blocks(params), limits.multiprocessors);
  const double unit = tile.words_per_lane * (tile.outputs() + 3.2 * params.codewords + 25);
  const std::int64_t by_memory = std::max(1, limits.shared_per_multiprocessor / (tile.shared_bytes + 1024));
  const std::int64_t resident = std::min({rounds, by_memory, std::int64_t{kSharingWarps / tile.warps}});
  return static_cast<double>(rounds) * unit * std::max(1.0, 4.0 / static_cast<double>(tile.warps * resident));
}

SharingTile plan_sharing(const CudaParams& params, const DeviceLimits& limits) {
  SharingTile best;
  double least = 0;
  for (const SharingTile& tile : sharing_tiles(params, limits)) {
    const double time = sharing_cycles(tile, params, limits);
    if (best.words_per_lane != 0 && time >= least) continue;
    best = tile;
    least = time;
  }
  return best;
}

}  // namespace subbit
