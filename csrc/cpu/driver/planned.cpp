#include "cpu/driver/planned.h"

#include "core/checked.h"

namespace subbit {
namespace {

template <class T>
T* offset_by(T* pointer, std::int64_t elements) {
  return pointer ? pointer + elements : nullptr;
}

}  // namespace

void StripRun::finish(std::int64_t pixel, std::int64_t pixels, const Sums& sums) const {
  const std::int64_t outputs = plan_.out_group();
  const std::int64_t first = strip_.group * outputs;
  FinishTask task{};
  task.sums = sums.sums;
  task.sums_stride = sums.stride;
  task.outputs = outputs;
  task.pixels = static_cast<int>(pixels);
  task.factor = sums.factor;
  task.offset = sums.offset;
  task.activation = params_.activation;
  task.scale = offset_by(operands_.scale, first);
  task.bias = offset_by(operands_.bias, first);
  task.slope = offset_by(operands_.slope, first);
  task.shift = offset_by(operands_.shift, first);
  task.residual = offset_by(
      operands_.residual, strip_.image * params_.residual_n + first * params_.residual_c + pixel * params_.residual_w);
  task.residual_channel = params_.residual_c;
  task.residual_pixel = params_.residual_w;
  task.y = offset_by(operands_.y, strip_.image * params_.y_n + first * params_.y_c + pixel * params_.y_w);
  task.y_channel = params_.y_c;
  task.y_pixel = params_.y_w;
  if (!operands_.y_plus) return kernel_.finish(task);

  const std::int64_t words = ceil_div(params_.out_channels, kWordChannels);
  const std::int64_t word = (strip_.image * strips_.out_pixels + pixel) * words + first / kWordChannels;
  const Words to{offset_by(operands_.y_plus, word), offset_by(operands_.y_nonzero, word), words,
                 offset_by(operands_.pack_shift, first), operands_.y_nonzero == nullptr};
  if (sums.with_signs && (!task.y || task.y_channel == 1)) {
    task.words = to;
    return kernel_.finish(task);
  }
  if (!task.y) {
    task.y = floats_.in(scratch_);
    task.y_channel = kFinishPixels;
    task.y_pixel = 1;
  }
  kernel_.finish(task);
  kernel_.pack({task.y, task.y_channel, task.y_pixel, outputs, pixels, to});
}

}  // namespace subbit
