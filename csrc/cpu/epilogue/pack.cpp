#include "cpu/epilogue/pack.h"

#include <algorithm>

#include "core/checked.h"
#include "cpu/driver/parallel.h"
#include "cpu/planner/select.h"

namespace subbit {

void pack(const PackParams& params, const float* x, const float* shift, std::uint64_t* plus, std::uint64_t* nonzero,
          Level level) {
  const std::int64_t words = ceil_div(params.channels, kWordChannels);
  checked_product({params.batch, params.height, params.width, words, 8}, "packed activations");
  const auto step = select_pack(level);
  // Rows that follow each other are one run of pixels, of which a task is a part.
  const bool gapless = params.x_h == params.width * params.x_w;
  const std::int64_t rows = gapless ? 1 : params.height;
  const std::int64_t pixels = gapless ? params.height * params.width : params.width;
  constexpr std::int64_t kTaskPixels = 512;
  const std::int64_t parts = ceil_div(pixels, kTaskPixels), tasks = params.batch * rows * parts;
  const int threads = static_cast<int>(std::min<std::int64_t>(params.threads, tasks));
  parallel(threads, tasks, [&](int, std::int64_t task) {
    const std::int64_t image = task / (rows * parts), row = task / parts % rows, first = task % parts * kTaskPixels;
    const std::int64_t at = (image * rows * pixels + row * pixels + first) * words;
    const Words to{plus + at, nonzero ? nonzero + at : nullptr, words, shift, params.sign_zero};
    step({x + image * params.x_n + row * params.x_h + first * params.x_w, params.x_c, params.x_w, params.channels,
          std::min(kTaskPixels, pixels - first), to});
  });
}

}  // namespace subbit
