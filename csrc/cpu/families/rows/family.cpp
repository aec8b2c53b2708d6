#include <algorithm>
#include <cstring>

#include "core/checked.h"
#include "cpu/driver/run.h"

namespace subbit {
namespace {

class RowsRun : Run {
 public:
  using Run::Run;

  void operator()() const {
    const std::int64_t tile_sums = strips_.outputs * kernel_.pixels * kernel_.sum_bytes();
    const std::int64_t tiles = ceil_div(strip_.end - strip_.begin, kernel_.pixels);
    std::byte* sums = scratch_ + strips_.sums_at;
    std::byte* planes = scratch_ + strips_.planes_at;
    std::memset(sums, 0, tiles * tile_sums);
    fill_masks(scratch_ + strips_.masks_at);

    Staging staging = plan_staging(params_, strips_.planes, strip_);
    RespondRowsTask respond = respond_task();
    const std::uint16_t* offsets = plan_.rows->offsets.data() + strip_.group * strips_.outputs * plan_.problem.units;
    for (std::int64_t first = 0; first < plan_.problem.units; first += plan_.plan.units_per_block) {
      const int units =
          static_cast<int>(std::min<std::int64_t>(plan_.plan.units_per_block, plan_.problem.units - first));
      for (std::int64_t u = 0; u < units; ++u) {
        for (int i = 0; i < strips_.planes.planes; ++i) {
          StageTask& task = staging.task[i];
          task.x = input(first + u) + staging.image_offset[i];
          task.plane = planes + (u * strips_.unit_stride + i * strips_.plane_stride) * kernel_.element_bytes();
          task.binarize = plan_.plan.binarize;
          kernel_.rows.stage(task);
        }
      }
      respond.units = units;
      for (std::int64_t tile = 0; tile < tiles; ++tile) {
        const std::int64_t pixel = strip_.begin + tile * kernel_.pixels;
        place_tile(pixel, respond);
        if (plan_.rows->respond) {
          (*plan_.rows->respond)(respond);
        } else {
          kernel_.rows.respond(respond);
        }
        const int pixels = static_cast<int>(std::min<std::int64_t>(kernel_.pixels, strip_.end - pixel));
        kernel_.rows.gather({respond.rows, offsets, units, strips_.outputs, pixels, sums + tile * tile_sums});
      }
      offsets += strips_.outputs * units;
    }
    const std::int64_t some = kFinishPixels / kernel_.pixels;
    for (std::int64_t tile = 0; tile < tiles; tile += some) {
      const std::int64_t pixel = strip_.begin + tile * kernel_.pixels;
      const std::int64_t pixels = std::min<std::int64_t>(kFinishPixels, strip_.end - pixel);
      finish(pixel, pixels, sums + tile * tile_sums, 1, nullptr);
    }
  }

 private:
  // What is left of the first and last taps of kernel rows where planes are shared: nothing at the edge that they
  // would reach across.
  void fill_masks(std::byte* masks) const {
    std::memset(masks, 0xff, 2 * strips_.mask_bytes);
    if (!strips_.planes.shared) return;
    const auto clear = [&](std::byte* mask, std::int64_t column) {
      std::int64_t pixel = strip_.first_row * params_.out_width + column;
      if (pixel < strip_.begin) pixel += params_.out_width;
      for (; pixel < strip_.end; pixel += params_.out_width) {
        std::memset(mask + (pixel - strip_.begin) * kernel_.element_bytes(), 0,
                    static_cast<std::size_t>(kernel_.element_bytes()));
      }
    };
    if (strips_.planes.tap_shift[0] < 0) clear(masks, 0);
    if (strips_.planes.tap_shift[2] > 0) clear(masks + strips_.mask_bytes, params_.out_width - 1);
  }

  // What does not change from tile to tile; planes hold the units of a block.
  RespondRowsTask respond_task() const {
    RespondRowsTask task{};
    task.terms = plan_.rows->terms.data();
    task.codewords = plan_.problem.codewords;
    task.unit = params_.unit;
    task.channel_bytes = strips_.plane_stride * kernel_.element_bytes();
    task.unit_bytes = strips_.unit_stride * kernel_.element_bytes();
    task.row_bytes = strips_.row_bytes;
    task.rows = scratch_ + strips_.responses_at;
    task.scratch = scratch_ + strips_.work_at;
    return task;
  }

  // Where the tile's first pixel is read.
  void place_tile(std::int64_t pixel, RespondRowsTask& task) const {
    const PlanePlan& planes = strips_.planes;
    const std::byte* base = scratch_ + strips_.planes_at;
    const auto element = [&](int row, int column) {
      return planes.plane_of_tap(row, column) * strips_.plane_stride +
             planes.element_of_tap(row, column, strip_.columns) + place(pixel);
    };
    if (params_.unit == Unit::k8x1x1) {
      task.channels = base + place(pixel) * kernel_.element_bytes();
      return;
    }
    for (int row = 0; row < 3; ++row) task.row[row] = base + element(row, 1) * kernel_.element_bytes();
    task.first_tap = (element(0, 0) - element(0, 1)) * kernel_.element_bytes();
    task.last_tap = (element(0, 2) - element(0, 1)) * kernel_.element_bytes();
    task.first_mask = scratch_ + strips_.masks_at + (pixel - strip_.begin) * kernel_.element_bytes();
    task.last_mask = static_cast<const std::byte*>(task.first_mask) + strips_.mask_bytes;
  }
};

}  // namespace

void run_rows(const ConvPlan& plan, const ConvOperands& operands, const Strip& strip, std::byte* scratch) {
  RowsRun(plan, operands, strip, scratch)();
}

}  // namespace subbit
