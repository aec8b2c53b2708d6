// The gather step in plain C++: the specification that every other level is tested against, bit for bit.
#include "cpu/families/kernels.h"

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

// As torch has them: NaN goes through.
float activate(float v, Activation activation, float slope) {
  switch (activation) {
    case Activation::kRelu:
      return v < 0 ? 0 : v;
    case Activation::kHardtanh:
      return v < -1 ? -1 : v > 1 ? 1 : v;
    case Activation::kPrelu:
      return v > 0 ? v : v * slope;
    case Activation::kNone:
      break;
  }
  return v;
}

template <class Sum, int kPixels>
void finish(const FinishTask& task) {
  for (std::int64_t o = 0; o < task.outputs; ++o) {
    const Sum* sums = static_cast<const Sum*>(task.sums) + o * kPixels;
    for (int p = 0; p < task.pixels; ++p) {
      float v = static_cast<float>(sums[p / kPixels * task.sums_stride + p % kPixels]);
      if (task.scale) v *= task.scale[o];
      v += task.bias ? task.bias[o] : 0;
      if (task.residual) v += task.residual[o * task.residual_channel + p * task.residual_pixel];
      v = activate(v, task.activation, task.slope ? task.slope[o] : 0);
      v += task.shift ? task.shift[o] : 0;  // -0 becomes 0, at every level
      task.y[o * task.y_channel + p * task.y_pixel] = v;
    }
  }
}

void pack(const PackTask& task) {
  const Words& out = task.words;
  const std::int64_t words = (task.channels + kWordChannels - 1) / kWordChannels;
  for (std::int64_t p = 0; p < task.pixels; ++p) {
    for (std::int64_t word = 0; word < words; ++word) {
      std::uint64_t plus = 0, nonzero = 0;
      for (int bit = 0; bit < kWordChannels && word * kWordChannels + bit < task.channels; ++bit) {
        const std::int64_t c = word * kWordChannels + bit;
        const float v = task.x[c * task.x_channel + p * task.x_pixel] + (out.shift ? out.shift[c] : 0);
        const std::uint64_t is_plus = v > 0 || (out.sign_zero && v == 0);
        plus |= is_plus << bit;
        nonzero |= (is_plus | std::uint64_t{v < 0}) << bit;
      }
      out.plus[p * out.stride + word] = plus;
      if (out.nonzero) out.nonzero[p * out.stride + word] = nonzero;
    }
  }
}

}  // namespace

void gather_float_rows_scalar(const GatherRowsTask& task) { gather<float, float, 16>(task); }
void gather_binary_rows_scalar(const GatherRowsTask& task) { gather<std::int8_t, std::int16_t, 32>(task); }

void finish_float_rows_scalar(const FinishTask& task) { finish<float, 16>(task); }
void finish_binary_rows_scalar(const FinishTask& task) { finish<std::int16_t, 32>(task); }

void pack_float_rows_scalar(const PackTask& task) { pack(task); }
void pack_binary_rows_scalar(const PackTask& task) { pack(task); }

}  // namespace subbit
