#include "cpu/driver/conv.h"

#include <algorithm>

#include "core/checked.h"
#include "cpu/driver/aligned.h"
#include "cpu/driver/parallel.h"
#include "cpu/planner/select.h"

namespace subbit {
namespace {

// Kept from call to call: allocating would cost more than a small layer.
std::byte* kept(AlignedBuffer& buffer, std::int64_t bytes) {
  if (static_cast<std::int64_t>(buffer.bytes()) < bytes) buffer = AlignedBuffer(static_cast<std::size_t>(bytes));
  return buffer.data();
}

// Contiguous strides (n, c, h, w) of an image batch.
void set_contiguous(std::int64_t channels, std::int64_t height, std::int64_t width, std::int64_t& n, std::int64_t& c,
                    std::int64_t& h, std::int64_t& w) {
  w = 1;
  h = width;
  c = checked_product({height, width}, "image");
  n = checked_product({channels, c}, "image");
}

// 1x1 convolutions without stride or padding do not care where a row ends: the image becomes one long row.
ConvProblem flattened(ConvProblem params) {
  const bool pointwise = params.unit == Unit::k8x1x1 && params.stride_h == 1 && params.stride_w == 1 &&
                         params.pad_h == 0 && params.pad_w == 0;
  if (pointwise && params.x_h == params.width * params.x_w) {
    params.width *= params.height;
    params.out_width *= params.out_height;
    params.height = params.out_height = 1;
  }
  return params;
}

Problem problem_of(const DecodedWeight& weight, const ConvProblem& params) {
  return {params.activations,
          params.unit,
          static_cast<int>(weight.codebook.size()),
          weight.units,
          params.out_channels / params.groups,
          params.groups,
          std::max({params.stride_h, params.stride_w, params.dilation_h, params.dilation_w}),
          params.out_height * params.out_width,
          params.height * params.width,
          params.x_is_packed};
}

}  // namespace

Conv::Conv(const Weight& weight, const ConvProblem& params, Level level, const std::string& wanted) {
  checked_product({params.batch, params.out_channels, params.out_height, params.out_width}, "output");
  ConvPlan plan;
  plan.problem = problem_of(weight.decoded(), params);
  checked_product({params.height, params.width}, "image");
  plan.plan = select(plan.problem, level, wanted).plan;
  kernel_ = plan.plan.kernel;
  is_packed_ = params.x_is_packed;
  const bool is_empty =
      params.batch == 0 || params.out_channels == 0 || params.out_height == 0 || params.out_width == 0;
  if (is_empty || !kernel_) return;

  ConvProblem& p = plan.params = params;
  const Family& family = kernel_->family();
  unpacks_ = params.x_is_packed && !family.reads_packed(params);
  if (unpacks_) {
    p.x_is_packed = false;
    p.sign_zero = false;
    set_contiguous(p.in_channels, p.height, p.width, p.x_n, p.x_c, p.x_h, p.x_w);
  } else if (params.x_is_packed) {  // strides count words
    set_contiguous(1, p.height, p.width * ceil_div(p.in_channels, kWordChannels), p.x_n, p.x_c, p.x_h, p.x_w);
    p.x_w = ceil_div(p.in_channels, kWordChannels);
    p.x_c = 0;
  }
  packs_last_ = params.packs && params.groups > 1 && plan.problem.outputs % kWordChannels != 0;
  if (packs_last_ && !params.has_y) {
    set_contiguous(p.out_channels, p.out_height, p.out_width, p.y_n, p.y_c, p.y_h, p.y_w);
  }
  p = flattened(p);
  plan.strips = plan_strips(p, *kernel_, plan.problem);
  planned_ = family.plan(plan, weight.form(plan.plan, params.groups));
  tasks_ = params.batch * params.groups * plan.strips.strips;
  threads_ = static_cast<int>(std::min<std::int64_t>(params.threads, tasks_));
  checked_product({planned_->scratch_bytes(), threads_}, "scratch memory");
}

void Conv::run(const ConvOperands& operands) const {
  thread_local AlignedBuffer buffer;
  const std::int64_t bytes = planned_->scratch_bytes();
  std::byte* scratch = kept(buffer, bytes * threads_);
  parallel(threads_, tasks_, [&](int thread, std::int64_t task) {
    planned_->run(operands, strip_of(task, params(), planned_->plan().strips), scratch + thread * bytes);
  });
}

// Packed activations as floats, for families that read nothing else.
void Conv::unpack(const ConvOperands& operands, float* x) const {
  const ConvProblem& p = params();
  const std::int64_t words = ceil_div(p.in_channels, kWordChannels), pixels = p.height * p.width;
  for (std::int64_t n = 0; n < p.batch; ++n) {
    for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
      for (std::int64_t c = 0; c < p.in_channels; ++c) {
        const std::int64_t at = (n * pixels + pixel) * words + c / kWordChannels;
        const auto bit = [&](const std::uint64_t* plane) { return (plane[at] >> (c % kWordChannels) & 1) != 0; };
        const bool is_zero = operands.x_nonzero && !bit(operands.x_nonzero);
        x[n * p.x_n + c * p.x_c + pixel] = is_zero ? 0.0f : bit(operands.x_plus) ? 1.0f : -1.0f;
      }
    }
  }
}

// Where groups do not begin at whole words, the signs are packed when all are there.
void Conv::pack(const ConvOperands& operands, const float* y) const {
  const ConvProblem& p = params();
  const std::int64_t words = ceil_div(p.out_channels, kWordChannels), pixels = p.out_height * p.out_width;
  for (std::int64_t n = 0; n < p.batch; ++n) {
    const std::int64_t at = n * pixels * words;
    const Words to{operands.y_plus + at, operands.y_nonzero ? operands.y_nonzero + at : nullptr, words,
                   operands.pack_shift, operands.y_nonzero == nullptr};
    kernel_->pack({y + n * p.y_n, p.y_c, p.y_w, p.out_channels, pixels, to});
  }
}

void Conv::operator()(const ConvOperands& given) const {
  if (tasks_ == 0) return;
  ConvOperands operands = given;
  const ConvProblem& p = params();
  thread_local AlignedBuffer unpacked, floats;
  if (unpacks_) {
    auto* x = reinterpret_cast<float*>(kept(unpacked, checked_product({p.batch, p.x_n, 4}, "unpacked input")));
    unpack(given, x);
    operands.x = x;
    operands.x_plus = operands.x_nonzero = nullptr;
  }
  if (packs_last_) {
    operands.y_plus = operands.y_nonzero = nullptr;
    if (!p.has_y) {
      operands.y = reinterpret_cast<float*>(kept(floats, checked_product({p.batch, p.y_n, 4}, "output")));
    }
  }
  run(operands);
  if (packs_last_) pack(given, operands.y);
}

}  // namespace subbit
