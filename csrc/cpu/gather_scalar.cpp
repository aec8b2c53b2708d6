// Stage 2 in plain C++: the specification that every other level is tested against, bit for bit.
#include "cpu/kernels.h"

namespace subbit {
namespace {

// Adds the units of one block in their order, whatever the level: so float sums have the same bits everywhere.
template <class Response, class Sum, int kPixels>
void gather(const GatherRowsTask& task) {
  for (std::int64_t o = 0; o < task.outputs; ++o) {
    Sum* sums = static_cast<Sum*>(task.sums) + o * kPixels;
    const std::uint16_t* offsets = task.offsets + o / kOutputsPerStep * kOutputsPerStep * task.units;
    for (int u = 0; u < task.units; ++u) {
      const auto* row = reinterpret_cast<const Response*>(static_cast<const char*>(task.rows) +
                                                          offsets[u * kOutputsPerStep + o % kOutputsPerStep]);
      for (int p = 0; p < task.pixels; ++p) sums[p] = static_cast<Sum>(sums[p] + row[p]);
    }
  }
}

template <class Sum, int kPixels>
void finish(const FinishTask& task) {
  for (std::int64_t o = 0; o < task.outputs; ++o) {
    const Sum* sums = static_cast<const Sum*>(task.sums) + o * kPixels;
    const float scale = task.scale ? task.scale[o] : 1;
    const float bias = task.bias ? task.bias[o] : 0;
    float* y = task.y + o * task.y_channel;
    for (int p = 0; p < task.pixels; ++p) {
      y[p * task.y_pixel] = static_cast<float>(sums[p]) * scale + bias;
    }
  }
}

}  // namespace

void gather_float_rows_scalar(const GatherRowsTask& task) { gather<float, float, 16>(task); }
void gather_binary_rows_scalar(const GatherRowsTask& task) { gather<std::int8_t, std::int16_t, 32>(task); }

void finish_float_rows_scalar(const FinishTask& task) { finish<float, 16>(task); }
void finish_binary_rows_scalar(const FinishTask& task) { finish<std::int16_t, 32>(task); }

}  // namespace subbit
