#include <algorithm>

#include "core/checked.h"
#include "cpu/driver/run.h"

namespace subbit {
namespace {

class PatchesRun : Run {
 public:
  using Run::Run;

  void operator()() const {
    static constexpr std::uint16_t kWholePatches[kChunk] = {};
    auto* plus = scratch<std::uint64_t>(strips_.planes_at);
    std::uint64_t* positive = plus + plan_.problem.units * strips_.unit_stride;
    auto* codes = scratch<std::uint16_t>(strips_.responses_at);
    auto* sums = scratch<std::uint16_t>(strips_.sums_at);
    auto* offset = scratch<float>(strips_.work_at);
    const PatchMap& map = *plan_.patch_map;
    const int taps = unit_taps(params_.unit), slot = plan_.patches->slot;
    const auto units = static_cast<float>(plan_.problem.units);

    // Zeros, and patches whose place has no rows, are looked up as -1 and as +1; the sum counts them as 0.
    const bool twice = stage(plus, positive) || !map.all_have_rows;

    CodePatchesTask code{};
    std::int64_t tap_bits[9];
    std::uint64_t inside[9];
    code.tap_bit = tap_bits;
    code.inside = inside;
    code.taps = taps;
    code.code_shift = __builtin_ctz(static_cast<unsigned>(slot / 8));
    code.unit_stride = strips_.unit_stride;
    code.units = plan_.problem.units;
    code.codes = codes;
    code.block_stride = plan_.problem.units * kCodePixels;
    LookUpTask look_up{};
    look_up.responses = reinterpret_cast<const std::uint8_t*>(plan_.patches->responses.data());
    look_up.slot = slot;
    look_up.units = plan_.problem.units;
    look_up.positions = reinterpret_cast<const std::uint8_t*>(plan_.patches->positions.data()) +
                        strip_.group * strips_.outputs * plan_.problem.units;
    look_up.outputs = strips_.outputs;

    for (std::int64_t pixel = strip_.begin; pixel < strip_.end; pixel += kChunk) {
      const int pixels = static_cast<int>(std::min<std::int64_t>(kChunk, strip_.end - pixel));
      for (int t = 0; t < taps; ++t) {
        tap_bits[t] = tap_bit(pixel, t);
        const std::uint64_t* word = map.inside.data() + t * map.words + pixel / 64;
        const int shift = static_cast<int>(pixel % 64);
        inside[t] = shift == 0 ? word[0] : word[0] >> shift | word[1] << (64 - shift);
      }
      code.first = twice ? kWholePatches : map.first.data() + pixel;
      for (int pass = 0; pass < (twice ? 2 : 1); ++pass) {
        code.outside = pass == 0 ? 0 : ~std::uint64_t{0};
        code.plane = pass == 0 ? plus : positive;
        kernel_.patches.code(code);
        look_up.add = pass == 1;
        for (int p = 0; p < pixels; p += kCodePixels) {
          look_up.codes = codes + p / kCodePixels * code.block_stride;
          look_up.pixels = std::min(kCodePixels, pixels - p);
          look_up.sums = sums + p * strips_.outputs;
          kernel_.patches.look_up(look_up);
        }
      }
      for (int p = 0; p < pixels; ++p) offset[p] = -units * static_cast<float>(twice ? taps : map.taps[pixel + p]);
      finish(pixel, pixels, sums, twice ? 1 : 2, offset);
    }
  }

 private:
  // All units as bits: `plus` planes, and the `positive` ones after them. Returns whether there are zeros.
  bool stage(std::uint64_t* plus, std::uint64_t* positive) const {
    const Staging staging = plan_staging(params_, strips_.planes, strip_);
    if (operands_.x_plus) {
      const std::int64_t image = strip_.image * params_.height * params_.width * words();
      const std::uint64_t* nonzero = operands_.x_nonzero ? operands_.x_nonzero + image : nullptr;
      return stage_packed(staging, {operands_.x_plus + image, nonzero, 1, 1}, plus, positive);
    }
    if (strips_.packs_input) return stage_packed(staging, pack_input(), plus, positive);
    bool zeros = false;
    for (std::int64_t u = 0; u < plan_.problem.units; ++u) {
      for (int i = 0; i < strips_.planes.planes; ++i) {
        StagePatchesTask task{staging.task[i], nullptr, nullptr};
        task.input.x = input(u) + staging.image_offset[i];
        const std::int64_t at = u * strips_.unit_stride + i * strips_.plane_stride + 1;  // a word before each plane
        task.plus = plus + at;
        task.positive = positive + at;
        zeros |= kernel_.patches.stage(task);
      }
    }
    return zeros;
  }

  std::int64_t words() const { return ceil_div(plan_.in_group(), kWordChannels); }

  // An image of the group's words. What counts elements of x counts `numerator` / `denominator` times as many words.
  struct PackedImage {
    const std::uint64_t* plus;
    const std::uint64_t* nonzero;  // or null
    std::int64_t numerator, denominator;
  };

  // Inputs whose channels lie next to each other are packed first: the image's rows that the strip reads.
  PackedImage pack_input() const {
    const std::int64_t first = strip_.first_row * params_.stride_h - params_.pad_h;
    const std::int64_t read =
        positions_read(strip_.rows, kernel_size(params_.unit), params_.stride_h, params_.dilation_h);
    const std::int64_t begin = std::clamp<std::int64_t>(first, 0, params_.height);
    const std::int64_t end = std::clamp<std::int64_t>(first + read, begin, params_.height);
    auto* plus = scratch<std::uint64_t>(strips_.packed_at);
    std::uint64_t* nonzero = plus + (end - begin) * params_.width * words();
    const Words to{plus, nonzero, words(), nullptr, params_.sign_zero};
    kernel_.pack({input(0) + begin * params_.x_h, params_.x_c, params_.x_w, plan_.in_group(),
                  (end - begin) * params_.width, to});
    const std::int64_t skipped = begin * params_.width * words();
    return {plus - skipped, nonzero - skipped, words(), params_.x_w};
  }

  // The same from words of 64 channels.
  bool stage_packed(const Staging& staging, const PackedImage& image, std::uint64_t* plus,
                    std::uint64_t* positive) const {
    const bool is_3x3 = params_.unit == Unit::k3x3;
    const auto in_words = [&](std::int64_t elements) { return elements / image.denominator * image.numerator; };
    bool zeros = false;
    for (std::int64_t c = 0; c < plan_.in_group(); c += kWordChannels) {
      for (int i = 0; i < (is_3x3 ? strips_.planes.planes : 1); ++i) {
        StagePackedTask task{};
        task.input = staging.task[i];
        task.input.step = in_words(task.input.step);
        task.input.row_step = in_words(task.input.row_step);
        const std::int64_t from = in_words(staging.image_offset[i]) + c / kWordChannels;
        task.words = image.plus + from;
        task.nonzero = image.nonzero ? image.nonzero + from : nullptr;
        task.channels = static_cast<int>(std::min<std::int64_t>(kWordChannels, plan_.in_group() - c));
        task.channel_stride = is_3x3 ? strips_.unit_stride : strips_.plane_stride;
        const std::int64_t at = c * task.channel_stride + i * strips_.plane_stride + 1;
        task.plus = plus + at;
        task.positive = positive + at;
        zeros |= kernel_.patches.stage_packed(task);
      }
    }
    return zeros;
  }

  // The bit of a unit's planes that tap t of a pixel is.
  std::int64_t tap_bit(std::int64_t pixel, int t) const {
    const PlanePlan& planes = strips_.planes;
    const bool is_3x3 = params_.unit == Unit::k3x3;
    const std::int64_t plane = is_3x3 ? planes.plane_of_tap(t / 3, t % 3) : t;
    const std::int64_t element = is_3x3 ? planes.element_of_tap(t / 3, t % 3, strip_.columns) : 0;
    return (plane * strips_.plane_stride + 1) * 64 + element + place(pixel);
  }
};

}  // namespace

void run_patches(const ConvPlan& plan, const ConvOperands& operands, const Strip& strip, std::byte* scratch) {
  PatchesRun(plan, operands, strip, scratch)();
}

}  // namespace subbit
