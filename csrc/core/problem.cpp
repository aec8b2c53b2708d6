#include "core/problem.h"

#include <stdexcept>
#include <string>

#include "core/checked.h"

namespace subbit {
namespace {

constexpr std::int64_t kMostSteps = std::int64_t{1} << 31;

std::int64_t output_size(std::int64_t input, std::int64_t pad, std::int64_t dilation, int kernel, std::int64_t stride) {
  const std::int64_t reach = dilation * (kernel - 1) + 1;
  return input + 2 * pad < reach ? -1 : (input + 2 * pad - reach) / stride + 1;
}

void check_axis(int kernel, std::int64_t input, std::int64_t output, std::int64_t stride, std::int64_t pad,
                std::int64_t dilation) {
  expect(stride >= 1 && stride < kMostSteps, "stride must be in [1, 2^31)");
  expect(dilation >= 1 && dilation < kMostSteps, "dilation must be in [1, 2^31)");
  expect(pad >= 0 && pad < kMostSteps, "padding must be in [0, 2^31)");
  expect(input >= 0 && input < kMostSteps, "height and width must be in [0, 2^31)");
  expect(output == output_size(input, pad, dilation, kernel, stride),
         "the output's height and width do not fit the input's");
}

}  // namespace

void expect(bool holds, const char* rule) {
  if (!holds) throw std::invalid_argument(std::string("conv2d: ") + rule);
}

void check(const ConvProblem& p) {
  check_axis(kernel_size(p.unit), p.height, p.out_height, p.stride_h, p.pad_h, p.dilation_h);
  check_axis(kernel_size(p.unit), p.width, p.out_width, p.stride_w, p.pad_w, p.dilation_w);
  expect(p.out_channels >= 1, "the output's sizes do not fit");
  expect(p.groups >= 1 && p.out_channels % p.groups == 0, "groups must divide out_channels");
  checked_product({p.batch, p.in_channels, p.height, p.width}, "input");
  checked_product({p.batch, p.out_channels, p.out_height, p.out_width}, "output");
  const std::int64_t step = checked_product({p.groups, unit_channels(p.unit)}, "groups");
  expect(p.in_channels >= step && p.in_channels % step == 0, "the input's channels do not fit the weight");
  expect(!p.x_is_packed || p.activations == Activations::kBinary, "packed input is binary");
  expect(p.has_y || p.packs, "there must be an output");
  expect(p.threads >= 1, "threads must be at least 1");
}

}  // namespace subbit
