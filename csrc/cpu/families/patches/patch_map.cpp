#include "cpu/families/patches/patch_map.h"

#include <algorithm>

#include "core/checked.h"
#include "cpu/families/patches/tasks.h"

namespace subbit {
namespace {

constexpr int kAll = 0b111, kNoFirst = 0b110, kNoLast = 0b011;

// Rows and columns of taps as bit sets of three.
std::uint16_t place_of(int rows, int columns) {
  int place = 0;
  for (int row = 0; row < 3; ++row) place |= rows >> row & 1 ? columns << (3 * row) : 0;
  return static_cast<std::uint16_t>(place);
}

// Which taps of output position `at` are inside along one axis.
int taps_inside(std::int64_t at, int taps, std::int64_t stride, std::int64_t pad, std::int64_t dilation,
                std::int64_t size) {
  int inside = 0;
  for (int t = 0; t < taps; ++t) {
    const std::int64_t x = at * stride + t * dilation - pad;
    if (x >= 0 && x < size) inside |= 1 << t;
  }
  return inside;
}

}  // namespace

std::vector<std::uint16_t> PatchMap::places(Unit unit) {
  if (unit == Unit::k8x1x1) return {0xff, 0};
  std::vector<std::uint16_t> result;
  for (int rows : {kAll, kNoFirst, kNoLast}) {
    for (int columns : {kAll, kNoFirst, kNoLast}) result.push_back(place_of(rows, columns));
  }
  return result;
}

PatchMap::PatchMap(const ConvProblem& params, int code_unit) {
  const int size = kernel_size(params.unit), unit_taps_ = unit_taps(params.unit);
  const std::vector<std::uint16_t> known = places(params.unit);
  const std::int64_t pixels = params.out_height * params.out_width;
  words = pixels / 64 + 2;
  inside.assign(static_cast<std::size_t>(checked_product({unit_taps_, words}, "patch map")), 0);
  first.assign(static_cast<std::size_t>(pixels + kChunk), 0);
  taps.assign(static_cast<std::size_t>(pixels), 0);

  std::vector<int> columns(static_cast<std::size_t>(params.out_width));
  for (std::int64_t x = 0; x < params.out_width; ++x) {
    columns[x] = taps_inside(x, size, params.stride_w, params.pad_w, params.dilation_w, params.width);
  }
  std::int64_t pixel = 0;
  for (std::int64_t y = 0; y < params.out_height; ++y) {
    const int rows = taps_inside(y, size, params.stride_h, params.pad_h, params.dilation_h, params.height);
    for (std::int64_t x = 0; x < params.out_width; ++x, ++pixel) {
      const std::uint16_t place =
          params.unit == Unit::k3x3 ? place_of(rows, columns[x]) : (rows & columns[x] ? 0xff : 0);
      for (int t = 0; t < unit_taps_; ++t) {
        inside[t * words + pixel / 64] |= static_cast<std::uint64_t>(place >> t & 1) << (pixel % 64);
      }
      taps[pixel] = static_cast<std::uint8_t>(__builtin_popcount(place));
      const auto found = std::find(known.begin(), known.end(), place) - known.begin();
      if (found == static_cast<std::ptrdiff_t>(known.size())) {
        all_have_rows = false;
      } else {
        first[pixel] = static_cast<std::uint16_t>((found << unit_taps_) * code_unit);
      }
    }
  }
}

PatchMapKey patch_map_key(const ConvProblem& params) {
  return {params.height,   params.width, params.out_height, params.out_width,  params.stride_h,
          params.stride_w, params.pad_h, params.pad_w,      params.dilation_h, params.dilation_w};
}

}  // namespace subbit
