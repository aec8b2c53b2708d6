#include "cpu/conv.h"

#include <algorithm>
#include <cstring>

#include "core/checked.h"
#include "cpu/aligned.h"
#include "cpu/parallel.h"
#include "cpu/strips.h"

namespace subbit {
namespace {

// One call: everything that does not change from strip to strip.
class Conv {
 public:
  Conv(const Weight& weight, const ConvParams& params, Level level)
      : params_(params),
        problem_{params.activations,
                 params.unit,
                 static_cast<int>(weight.decoded().codebook.size()),
                 weight.decoded().units,
                 params.out_channels / params.groups,
                 std::max({params.stride_h, params.stride_w, params.dilation_h, params.dilation_w})},
        plan_(select(problem_, level)),
        kernel_(*plan_.kernel),
        strips_(plan_strips(params, plan_, problem_)),
        element_(kernel_.activations == Activations::kBinary ? 1 : sizeof(float)) {
    if (kernel_.layout == Layout::kRows) {
      rows_form_ = &weight.rows_form(plan_, params.groups);
    } else if (kernel_.layout == Layout::kPatches) {
      patches_form_ = &weight.patches_form(plan_, params.groups);
      patch_map_ = weight.patch_map(params, patches_form_->slot / 8);
    } else {
      bits_form_ = &weight.bits_form(plan_, params.groups);
    }
  }

  std::int64_t tasks() const { return params_.batch * params_.groups * strips_.strips; }
  std::int64_t scratch_bytes() const { return strips_.scratch_bytes; }

  void run(std::int64_t task, std::byte* scratch) const {
    const Strip strip = strip_of(task);
    if (kernel_.layout == Layout::kRows) {
      run_rows(strip, scratch);
    } else if (kernel_.layout == Layout::kPatches) {
      run_patches(strip, scratch);
    } else {
      run_bits(strip, scratch);
    }
  }

 private:
  Strip strip_of(std::int64_t task) const {
    Strip s;
    const std::int64_t pixels = strips_.tiles_per_strip * kernel_.pixels;
    s.begin = task % strips_.strips * pixels;
    s.end = std::min(s.begin + pixels, strips_.out_pixels);
    s.group = task / strips_.strips % params_.groups;
    s.image = task / strips_.strips / params_.groups;
    s.first_row = s.begin / params_.out_width;
    s.rows = (s.end - 1) / params_.out_width - s.first_row + 1;
    const bool is_part_of_row = s.rows == 1 && (kernel_.layout == Layout::kBits || !strips_.planes.shared);
    s.first_column = is_part_of_row ? s.begin - s.first_row * params_.out_width : 0;
    s.columns = is_part_of_row ? s.end - s.begin : params_.out_width;
    return s;
  }

  // Where a pixel of a strip is in a plane whose first tap it is.
  std::int64_t place(const Strip& strip, std::int64_t pixel) const {
    return pixel - strip.first_row * params_.out_width - strip.first_column;
  }

  // A unit's first channel.
  const float* input(const Strip& strip, std::int64_t unit) const {
    const std::int64_t in_group = params_.in_channels / params_.groups;
    return params_.x + strip.image * params_.x_n +
           (strip.group * in_group + unit * unit_channels(params_.unit)) * params_.x_c;
  }

  // What is left of the first and last taps of kernel rows where planes are shared: nothing at the edge that they
  // would reach across.
  void fill_masks(const Strip& strip, std::byte* masks) const {
    std::memset(masks, 0xff, 2 * strips_.mask_bytes);
    if (!strips_.planes.shared) return;
    const auto clear = [&](std::byte* mask, std::int64_t column) {
      std::int64_t pixel = strip.first_row * params_.out_width + column;
      if (pixel < strip.begin) pixel += params_.out_width;
      for (; pixel < strip.end; pixel += params_.out_width) {
        std::memset(mask + (pixel - strip.begin) * element_, 0, element_);
      }
    };
    if (strips_.planes.tap_shift[0] < 0) clear(masks, 0);
    if (strips_.planes.tap_shift[2] > 0) clear(masks + strips_.mask_bytes, params_.out_width - 1);
  }

  // What does not change from tile to tile; planes hold the units of a block.
  RespondRowsTask respond_task(std::byte* scratch) const {
    RespondRowsTask task{};
    task.terms = rows_form_->terms.data();
    task.codewords = problem_.codewords;
    task.unit = params_.unit;
    task.channel_bytes = strips_.plane_stride * element_;
    task.unit_bytes = strips_.unit_stride * element_;
    task.row_bytes = strips_.row_bytes;
    task.rows = scratch + strips_.responses_at;
    task.scratch = scratch + strips_.work_at;
    return task;
  }

  // Where the tile's first pixel is read.
  void place_tile(const Strip& strip, std::int64_t pixel, std::byte* scratch, RespondRowsTask& task) const {
    const PlanePlan& planes = strips_.planes;
    const std::byte* base = scratch + strips_.planes_at;
    const auto element = [&](int row, int column) {
      return planes.plane_of_tap(row, column) * strips_.plane_stride +
             planes.element_of_tap(row, column, strip.columns) + place(strip, pixel);
    };
    if (params_.unit == Unit::k8x1x1) {
      task.channels = base + place(strip, pixel) * element_;
      return;
    }
    for (int row = 0; row < 3; ++row) task.row[row] = base + element(row, 1) * element_;
    task.first_tap = (element(0, 0) - element(0, 1)) * element_;
    task.last_tap = (element(0, 2) - element(0, 1)) * element_;
    task.first_mask = scratch + strips_.masks_at + (pixel - strip.begin) * element_;
    task.last_mask = static_cast<const std::byte*>(task.first_mask) + strips_.mask_bytes;
  }

  void run_rows(const Strip& strip, std::byte* scratch) const {
    const std::int64_t sum_bytes = kernel_.activations == Activations::kBinary ? 2 : 4;
    const std::int64_t tile_sums = strips_.outputs * kernel_.pixels * sum_bytes;
    const std::int64_t tiles = ceil_div(strip.end - strip.begin, kernel_.pixels);
    std::byte* sums = scratch + strips_.sums_at;
    std::byte* planes = scratch + strips_.planes_at;
    std::memset(sums, 0, tiles * tile_sums);
    fill_masks(strip, scratch + strips_.masks_at);

    Staging staging = plan_staging(params_, strips_.planes, strip);
    RespondRowsTask respond = respond_task(scratch);
    const std::uint16_t* offsets = rows_form_->offsets.data() + strip.group * strips_.outputs * problem_.units;
    for (std::int64_t first = 0; first < problem_.units; first += plan_.units_per_block) {
      const int units = static_cast<int>(std::min<std::int64_t>(plan_.units_per_block, problem_.units - first));
      for (std::int64_t u = 0; u < units; ++u) {
        for (int i = 0; i < strips_.planes.planes; ++i) {
          StageTask& task = staging.task[i];
          task.x = input(strip, first + u) + staging.image_offset[i];
          task.plane = planes + (u * strips_.unit_stride + i * strips_.plane_stride) * element_;
          task.binarize = plan_.binarize;
          kernel_.stage_rows(task);
        }
      }
      respond.units = units;
      for (std::int64_t tile = 0; tile < tiles; ++tile) {
        const std::int64_t pixel = strip.begin + tile * kernel_.pixels;
        place_tile(strip, pixel, scratch, respond);
        if (rows_form_->respond) {
          (*rows_form_->respond)(respond);
        } else {
          kernel_.respond_rows(respond);
        }
        const int pixels = static_cast<int>(std::min<std::int64_t>(kernel_.pixels, strip.end - pixel));
        kernel_.gather_rows({respond.rows, offsets, units, strips_.outputs, pixels, sums + tile * tile_sums});
      }
      offsets += strips_.outputs * units;
    }
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      const std::int64_t pixel = strip.begin + tile * kernel_.pixels;
      const std::int64_t pixels = std::min<std::int64_t>(kernel_.pixels, strip.end - pixel);
      finish(strip, pixel, pixels, sums + tile * tile_sums, 1, nullptr);
    }
  }

  // All units as bits: `plus` planes, and the `positive` ones behind them. Returns whether there are zeros.
  bool stage_patches(const Strip& strip, std::uint64_t* plus, std::uint64_t* positive) const {
    Staging staging = plan_staging(params_, strips_.planes, strip);
    bool zeros = false;
    for (std::int64_t u = 0; u < problem_.units; ++u) {
      for (int i = 0; i < strips_.planes.planes; ++i) {
        StagePatchesTask task{staging.task[i], nullptr, nullptr};
        task.input.x = input(strip, u) + staging.image_offset[i];
        const std::int64_t at = u * strips_.unit_stride + i * strips_.plane_stride + 1;  // a word before each plane
        task.plus = plus + at;
        task.positive = positive + at;
        zeros |= kernel_.stage_patches(task);
      }
    }
    return zeros;
  }

  // The bit of a unit's planes that tap t of a pixel is.
  std::int64_t tap_bit(const Strip& strip, std::int64_t pixel, int t) const {
    const PlanePlan& planes = strips_.planes;
    const bool is_3x3 = params_.unit == Unit::k3x3;
    const std::int64_t plane = is_3x3 ? planes.plane_of_tap(t / 3, t % 3) : t;
    const std::int64_t element = is_3x3 ? planes.element_of_tap(t / 3, t % 3, strip.columns) : 0;
    return (plane * strips_.plane_stride + 1) * 64 + element + place(strip, pixel);
  }

  void run_patches(const Strip& strip, std::byte* scratch) const {
    static constexpr std::uint16_t kWholePatches[kChunk] = {};
    auto* plus = reinterpret_cast<std::uint64_t*>(scratch + strips_.planes_at);
    std::uint64_t* positive = plus + problem_.units * strips_.unit_stride;
    auto* codes = reinterpret_cast<std::uint16_t*>(scratch + strips_.responses_at);
    auto* sums = reinterpret_cast<std::uint16_t*>(scratch + strips_.sums_at);
    auto* offset = reinterpret_cast<float*>(scratch + strips_.work_at);
    const PatchMap& map = *patch_map_;
    const int taps = unit_taps(params_.unit), slot = patches_form_->slot;
    const auto units = static_cast<float>(problem_.units);

    // Zeros, and patches whose place has no rows, are looked up as -1 and as +1; the sum counts them as 0.
    const bool twice = stage_patches(strip, plus, positive) || !map.all_have_rows;

    CodePatchesTask code{};
    std::int64_t tap_bits[9];
    std::uint64_t inside[9];
    code.tap_bit = tap_bits;
    code.inside = inside;
    code.taps = taps;
    code.code_shift = __builtin_ctz(static_cast<unsigned>(slot / 8));
    code.block_stride = problem_.units * kCodePixels;
    LookUpTask look_up{};
    look_up.responses = reinterpret_cast<const std::uint8_t*>(patches_form_->responses.data());
    look_up.slot = slot;
    look_up.units = problem_.units;
    look_up.positions = reinterpret_cast<const std::uint8_t*>(patches_form_->positions.data()) +
                        strip.group * strips_.outputs * problem_.units;
    look_up.outputs = strips_.outputs;

    for (std::int64_t pixel = strip.begin; pixel < strip.end; pixel += kChunk) {
      const int pixels = static_cast<int>(std::min<std::int64_t>(kChunk, strip.end - pixel));
      for (int t = 0; t < taps; ++t) {
        tap_bits[t] = tap_bit(strip, pixel, t);
        const std::uint64_t* word = map.inside.data() + t * map.words + pixel / 64;
        const int shift = static_cast<int>(pixel % 64);
        inside[t] = shift == 0 ? word[0] : word[0] >> shift | word[1] << (64 - shift);
      }
      code.pixels = pixels;
      code.first = twice ? kWholePatches : map.first.data() + pixel;
      for (int pass = 0; pass < (twice ? 2 : 1); ++pass) {
        code.outside = pass == 0 ? 0 : ~std::uint64_t{0};
        for (std::int64_t u = 0; u < problem_.units; ++u) {
          code.plane = (pass == 0 ? plus : positive) + u * strips_.unit_stride;
          code.codes = codes + u * kCodePixels;
          kernel_.code_patches(code);
        }
        look_up.add = pass == 1;
        for (int p = 0; p < pixels; p += kCodePixels) {
          look_up.codes = codes + p / kCodePixels * code.block_stride;
          look_up.pixels = std::min(kCodePixels, pixels - p);
          look_up.sums = sums + p * strips_.outputs;
          kernel_.look_up_patches(look_up);
        }
      }
      for (int p = 0; p < pixels; ++p) offset[p] = -units * static_cast<float>(twice ? taps : map.taps[pixel + p]);
      finish(strip, pixel, pixels, sums, twice ? 1 : 2, offset);
    }
  }

  // Packs the part of the input that the strip reads into words of 64 channels a pixel, [row][column][word].
  void stage_bits(const Strip& strip, std::uint64_t* words) const {
    const std::int64_t channels = params_.in_channels / params_.groups;
    const std::int64_t pixel_words = 2 * std::int64_t{bits_form_->words};
    const std::int64_t row_words = strips_.region_columns * pixel_words;
    const std::int64_t first_row = strip.first_row * params_.stride_h - params_.pad_h;
    const std::int64_t first_column = strip.first_column * params_.stride_w - params_.pad_w;
    const std::int64_t taps = kernel_size(params_.unit);
    const std::int64_t rows = (strip.rows - 1) * params_.stride_h + (taps - 1) * params_.dilation_h + 1;
    const std::int64_t columns = (strip.columns - 1) * params_.stride_w + (taps - 1) * params_.dilation_w + 1;
    const std::int64_t begin = std::clamp<std::int64_t>(-first_column, 0, columns);
    const std::int64_t end = std::clamp<std::int64_t>(params_.width - first_column, begin, columns);
    std::memset(words, 0, rows * row_words * sizeof(*words));  // padding is not in use
    for (std::int64_t j = 0; j < rows; ++j) {
      const std::int64_t row = first_row + j;
      if (row < 0 || row >= params_.height || begin == end) continue;
      StageBitsTask task;
      task.x_channel = params_.x_c;
      task.x_column = params_.x_w;
      task.columns = end - begin;
      task.word_stride = pixel_words;
      task.sign_zero = params_.sign_zero;
      for (std::int64_t c = 0; c < channels; c += 64) {
        task.x = params_.x + strip.image * params_.x_n + (strip.group * channels + c) * params_.x_c +
                 row * params_.x_h + (first_column + begin) * params_.x_w;
        task.channels = static_cast<int>(std::min<std::int64_t>(64, channels - c));
        task.words = words + j * row_words + begin * pixel_words + c / 64 * 2;
        kernel_.stage_bits(task);
      }
    }
  }

  void run_bits(const Strip& strip, std::byte* scratch) const {
    auto* words = reinterpret_cast<std::uint64_t*>(scratch + strips_.planes_at);
    auto* different = reinterpret_cast<std::uint16_t*>(scratch + strips_.sums_at);
    auto* used = reinterpret_cast<float*>(scratch + strips_.work_at);
    stage_bits(strip, words);

    const int size = kernel_size(params_.unit), taps = kernel_taps(params_.unit);
    const std::int64_t pixel_words = 2 * std::int64_t{bits_form_->words};
    const std::int64_t row_words = strips_.region_columns * pixel_words;
    std::int64_t tap_offset[9];
    for (int t = 0; t < taps; ++t) {
      tap_offset[t] = t / size * params_.dilation_h * row_words + t % size * params_.dilation_w * pixel_words;
    }
    MatchBitsTask match;
    match.tap_offset = tap_offset;
    match.taps = taps;
    match.words = bits_form_->words;
    match.weights = reinterpret_cast<const std::uint64_t*>(bits_form_->weights.data()) +
                    strip.group * strips_.outputs * taps * bits_form_->words;
    match.outputs = strips_.outputs;
    for (std::int64_t pixel = strip.begin; pixel < strip.end; pixel += kBitsPixels) {
      match.pixels = static_cast<int>(std::min<std::int64_t>(kBitsPixels, strip.end - pixel));
      for (int i = 0; i < match.pixels; ++i) {
        const std::int64_t row = (pixel + i) / params_.out_width - strip.first_row;
        const std::int64_t column = (pixel + i) % params_.out_width - strip.first_column;
        match.pixel[i] = words + row * params_.stride_h * row_words + column * params_.stride_w * pixel_words;
      }
      match.different = different + (pixel - strip.begin) * strips_.outputs;
      match.used = used + (pixel - strip.begin);
      kernel_.match_bits(match);
    }
    finish(strip, strip.begin, strip.end - strip.begin, different, -2, used);
  }

  void finish(const Strip& strip, std::int64_t pixel, std::int64_t pixels, const void* sums, float factor,
              const float* offset) const {
    const std::int64_t outputs = params_.out_channels / params_.groups;
    const std::int64_t first = strip.group * outputs;
    FinishTask task;
    task.sums = sums;
    task.sums_stride = strips_.outputs;
    task.outputs = outputs;
    task.pixels = static_cast<int>(pixels);
    task.factor = factor;
    task.offset = offset;
    task.y = params_.y + strip.image * params_.y_n + first * params_.y_c + pixel * params_.y_w;
    task.y_channel = params_.y_c;
    task.y_pixel = params_.y_w;
    task.scale = params_.scale ? params_.scale + first : nullptr;
    task.bias = params_.bias ? params_.bias + first : nullptr;
    kernel_.finish(task);
  }

  const ConvParams& params_;
  const Problem problem_;
  const Plan plan_;
  const Kernel& kernel_;
  const StripPlan strips_;
  const std::int64_t element_;  // bytes of a staged value
  const RowsForm* rows_form_ = nullptr;
  const PatchesForm* patches_form_ = nullptr;
  std::shared_ptr<const PatchMap> patch_map_;
  const BitsForm* bits_form_ = nullptr;
};

// 1x1 convolutions without stride or padding do not care where a row ends: the image becomes one long row.
ConvParams flattened(ConvParams params) {
  const bool pointwise = params.unit == Unit::k8x1x1 && params.stride_h == 1 && params.stride_w == 1 &&
                         params.pad_h == 0 && params.pad_w == 0;
  if (pointwise && params.x_h == params.width * params.x_w) {
    params.width *= params.height;
    params.out_width *= params.out_height;
    params.height = params.out_height = 1;
  }
  return params;
}

}  // namespace

void conv(const Weight& weight, const ConvParams& given, Level level) {
  checked_product({given.batch, given.out_channels, given.out_height, given.out_width}, "output");
  if (given.batch == 0 || given.out_channels == 0 || given.out_height == 0 || given.out_width == 0) return;
  const ConvParams params = flattened(given);
  const Conv call(weight, params, level);

  // Kept from call to call: allocating would cost more than a small layer.
  thread_local AlignedBuffer scratch;
  const std::int64_t bytes = call.scratch_bytes();
  const int threads = static_cast<int>(std::min<std::int64_t>(params.threads, call.tasks()));
  const std::int64_t all = checked_product({bytes, threads}, "scratch memory");
  if (static_cast<std::int64_t>(scratch.bytes()) < all) scratch = AlignedBuffer(static_cast<std::size_t>(all));
  std::byte* base = scratch.data();
  parallel(threads, call.tasks(), [&](int thread, std::int64_t task) { call.run(task, base + thread * bytes); });
}

}  // namespace subbit
