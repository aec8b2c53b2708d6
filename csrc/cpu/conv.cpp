#include "cpu/conv.h"

#include <algorithm>
#include <cstring>

#include "core/checked.h"
#include "cpu/aligned.h"
#include "cpu/parallel.h"
#include "cpu/strips.h"

namespace subbit {
namespace {

// A run of output pixels [begin, end) of one image and group, and the part of the image it lies in.
struct Strip {
  std::int64_t image, group;
  std::int64_t begin, end;
  std::int64_t first_row, rows;
  std::int64_t first_column, columns;  // part of a row only where the strip lies in one row

  // Where a pixel of the strip is in a plane.
  std::int64_t place(std::int64_t pixel, std::int64_t out_width) const {
    return pixel - first_row * out_width - first_column;
  }
};

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
    } else if (kernel_.layout == Layout::kTables) {
      tables_form_ = &weight.tables_form(plan_, params.groups);
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
    } else if (kernel_.layout == Layout::kTables) {
      run_tables(strip, scratch);
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
    s.first_column = s.rows == 1 ? s.begin - s.first_row * params_.out_width : 0;
    s.columns = s.rows == 1 ? s.end - s.begin : params_.out_width;
    return s;
  }

  // The columns of an image row that a phase of the strip's columns reads; x is set for each unit.
  Line line(const Strip& strip, std::int64_t offset, std::int64_t length) const {
    // Element i of the line is image column first + i * stride.
    const std::int64_t first = strip.first_column * params_.stride_w + offset - params_.pad_w;
    const std::int64_t before = first >= 0 ? 0 : ceil_div(-first, params_.stride_w);
    const std::int64_t inside = params_.width - first;  // columns from `first` to the end of the image
    const std::int64_t end = inside <= 0 ? 0 : ceil_div(inside, params_.stride_w);
    Line line{nullptr, params_.stride_w * params_.x_w, std::min(before, length), 0, length};
    line.count = std::clamp<std::int64_t>(end - before, 0, length - line.before);
    return line;
  }

  // How a strip's units are staged: one task a phase of rows, which differs from unit to unit in its addresses.
  struct Staging {
    StageTask task[Phases::kMaxTaps];
    std::int64_t image_offset[Phases::kMaxTaps][kMaxLines];  // of a line's first element, from a unit's channel 0
  };

  Staging staging(const Strip& strip, std::byte* lines) const {
    Staging staging{};
    for (int phase = 0; phase < strips_.rows.count; ++phase) {
      StageTask& task = staging.task[phase];
      task.columns = strip.columns;
      task.plane_stride = strips_.plane_stride;
      task.scratch = lines;
      task.scratch_stride = strips_.line_stride;
      task.binarize = plan_.binarize;
      task.sign_zero = params_.sign_zero;
      task.code_unit = tables_form_ ? tables_form_->slot / 8 : 0;

      // Row j of the phase is image row first + j * stride.
      const std::int64_t first = strip.first_row * params_.stride_h + strips_.rows.first[phase] - params_.pad_h;
      task.rows = strip.rows + strips_.rows.max_shift[phase];
      task.row_step = params_.stride_h * params_.x_h;
      task.inside_begin = std::min(first >= 0 ? 0 : ceil_div(-first, params_.stride_h), task.rows);
      const std::int64_t below = params_.height - first;
      task.inside_end = std::min(below <= 0 ? 0 : ceil_div(below, params_.stride_h), task.rows);

      const bool is_3x3 = params_.unit == Unit::k3x3;
      task.line_count = is_3x3 ? strips_.columns.count : unit_channels(params_.unit);
      for (int t = 0; t < 3; ++t) {
        task.tap_line[t] = strips_.columns.phase_of_tap[t];
        task.tap_shift[t] = strips_.columns.shift_of_tap[t];
      }
      for (int l = 0; l < task.line_count; ++l) {
        const std::int64_t offset = is_3x3 ? strips_.columns.first[l] : 0;
        task.lines[l] = line(strip, offset, strip.columns + (is_3x3 ? strips_.columns.max_shift[l] : 0));
        if (task.inside_begin >= task.inside_end || task.lines[l].count == 0) continue;
        const std::int64_t column =
            strip.first_column * params_.stride_w + offset - params_.pad_w + task.lines[l].before * params_.stride_w;
        staging.image_offset[phase][l] = (is_3x3 ? 0 : l) * params_.x_c +
                                         (first + task.inside_begin * params_.stride_h) * params_.x_h +
                                         column * params_.x_w;
      }
    }
    return staging;
  }

  void stage_unit(Staging& staging, const Strip& strip, std::int64_t unit, std::byte* planes) const {
    const std::int64_t in_group = params_.in_channels / params_.groups;
    const float* x = params_.x + strip.image * params_.x_n +
                     (strip.group * in_group + unit * unit_channels(params_.unit)) * params_.x_c;
    for (int phase = 0; phase < strips_.rows.count; ++phase) {
      StageTask& task = staging.task[phase];
      task.planes = planes + phase * strips_.planes_per_phase * strips_.plane_stride * element_;
      for (int l = 0; l < task.line_count; ++l) task.lines[l].x = x + staging.image_offset[phase][l];
      if (params_.unit == Unit::k3x3) {
        kernel_.stage_3x3(task);
      } else {
        kernel_.stage_8x1x1(task);
      }
    }
  }

  // The plane (or first plane) that part `part` of a unit reads, at a tile's first pixel.
  const std::byte* part(const Strip& strip, const std::byte* planes, std::int64_t pixel, int part) const {
    std::int64_t at = strip.place(pixel, params_.out_width);
    if (params_.unit == Unit::k3x3) {
      at += strips_.rows.phase_of_tap[part] * strips_.planes_per_phase * strips_.plane_stride +
            strips_.rows.shift_of_tap[part] * strip.columns;
    } else {
      at += part * (strips_.planes_per_phase / parts()) * strips_.plane_stride;
    }
    return planes + at * element_;
  }

  int parts() const { return params_.unit == Unit::k3x3 || kernel_.layout == Layout::kTables ? 3 : 2; }

  void run_rows(const Strip& strip, std::byte* scratch) const {
    const std::int64_t sum_bytes = kernel_.activations == Activations::kBinary ? 2 : 4;
    const std::int64_t tile_sums = strips_.outputs * kernel_.pixels * sum_bytes;
    const std::int64_t tiles = ceil_div(strip.end - strip.begin, kernel_.pixels);
    std::byte* sums = scratch + strips_.sums_at;
    std::byte* planes = scratch + strips_.planes_at;
    std::byte* rows = scratch + strips_.responses_at;
    std::memset(sums, 0, tiles * tile_sums);

    Staging stages = staging(strip, scratch + strips_.lines_at);
    const std::uint16_t* offsets = rows_form_->offsets.data() + strip.group * strips_.outputs * problem_.units;
    for (std::int64_t first = 0; first < problem_.units; first += plan_.units_per_block) {
      const int units = static_cast<int>(std::min<std::int64_t>(plan_.units_per_block, problem_.units - first));
      for (int u = 0; u < units; ++u) {
        stage_unit(stages, strip, first + u, planes + u * strips_.unit_stride * element_);
      }
      for (std::int64_t tile = 0; tile < tiles; ++tile) {
        const std::int64_t pixel = strip.begin + tile * kernel_.pixels;
        RespondRowsTask respond{};
        respond.terms = rows_form_->terms.data();
        respond.run_end = rows_form_->run_end;
        respond.unit = params_.unit;
        respond.plane_bytes = strips_.plane_stride * element_;
        respond.unit_bytes = strips_.unit_stride * element_;
        respond.units = units;
        respond.row_bytes = strips_.row_bytes;
        respond.rows = rows;
        for (int i = 0; i < parts(); ++i) respond.part[i] = part(strip, planes, pixel, i);
        if (rows_form_->respond) {
          (*rows_form_->respond)(respond);
        } else {
          kernel_.respond_rows(respond);
        }
        const int pixels = static_cast<int>(std::min<std::int64_t>(kernel_.pixels, strip.end - pixel));
        kernel_.gather_rows({rows, offsets, units, strips_.outputs, pixels, sums + tile * tile_sums});
      }
      offsets += strips_.outputs * units;
    }
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      const std::int64_t pixel = strip.begin + tile * kernel_.pixels;
      const std::int64_t pixels = std::min<std::int64_t>(kernel_.pixels, strip.end - pixel);
      finish(strip, pixel, pixels, sums + tile * tile_sums, 0);
    }
  }

  void run_tables(const Strip& strip, std::byte* scratch) const {
    auto* sums = reinterpret_cast<std::uint16_t*>(scratch + strips_.sums_at);
    std::byte* planes = scratch + strips_.planes_at;
    auto* tables = reinterpret_cast<std::uint8_t*>(scratch + strips_.responses_at);
    std::memset(sums, 0, (strip.end - strip.begin) * strips_.outputs * sizeof(*sums));

    const int slot = tables_form_->slot;
    const auto* positions = reinterpret_cast<const std::uint8_t*>(tables_form_->positions.data()) +
                            strip.group * (tables_form_->positions.bytes() / params_.groups);
    Staging stages = staging(strip, scratch + strips_.lines_at);
    for (std::int64_t first = 0; first < problem_.units; first += plan_.units_per_block) {
      const int units = static_cast<int>(std::min<std::int64_t>(plan_.units_per_block, problem_.units - first));
      const int registers = static_cast<int>(ceil_div(std::int64_t{units} * slot, 64));
      for (int u = 0; u < units; ++u) {
        stage_unit(stages, strip, first + u, planes + u * strips_.unit_stride);
      }
      for (std::int64_t pixel = strip.begin; pixel < strip.end; pixel += kernel_.pixels) {
        const int pixels = static_cast<int>(std::min<std::int64_t>(kernel_.pixels, strip.end - pixel));
        RespondTablesTask respond;
        for (int i = 0; i < parts(); ++i) {
          respond.codes[i] = reinterpret_cast<const std::uint8_t*>(part(strip, planes, pixel, i));
        }
        respond.unit_stride = strips_.unit_stride;
        respond.units = units;
        respond.pixels = pixels;
        respond.responses = reinterpret_cast<const std::uint8_t*>(tables_form_->responses.data());
        respond.slot = slot;
        respond.tables = tables;
        respond.table_stride = strips_.table_stride;
        kernel_.respond_tables(respond);
        kernel_.gather_tables({tables, strips_.table_stride, slot, registers, positions, strips_.outputs, pixels,
                               sums + (pixel - strip.begin) * strips_.outputs});
      }
      positions += std::int64_t{registers} * (64 / slot) * strips_.outputs;
    }
    const auto bias = static_cast<std::int32_t>(problem_.units * unit_taps(params_.unit));
    finish(strip, strip.begin, strip.end - strip.begin, sums, bias);
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
    auto* sums = reinterpret_cast<std::uint16_t*>(scratch + strips_.sums_at);
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
    match.bias = static_cast<std::uint16_t>(problem_.units * unit_taps(params_.unit));
    for (std::int64_t pixel = strip.begin; pixel < strip.end; pixel += kBitsPixels) {
      match.pixels = static_cast<int>(std::min<std::int64_t>(kBitsPixels, strip.end - pixel));
      for (int i = 0; i < match.pixels; ++i) {
        const std::int64_t row = (pixel + i) / params_.out_width - strip.first_row;
        const std::int64_t column = (pixel + i) % params_.out_width - strip.first_column;
        match.pixel[i] = words + row * params_.stride_h * row_words + column * params_.stride_w * pixel_words;
      }
      match.sums = sums + (pixel - strip.begin) * strips_.outputs;
      kernel_.match_bits(match);
    }
    finish(strip, strip.begin, strip.end - strip.begin, sums, match.bias);
  }

  void finish(const Strip& strip, std::int64_t pixel, std::int64_t pixels, const void* sums,
              std::int32_t bias_of_sums) const {
    const std::int64_t outputs = params_.out_channels / params_.groups;
    const std::int64_t first = strip.group * outputs;
    FinishTask task;
    task.sums = sums;
    task.sums_stride = strips_.outputs;
    task.outputs = outputs;
    task.pixels = static_cast<int>(pixels);
    task.bias_of_sums = bias_of_sums;
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
  const TablesForm* tables_form_ = nullptr;
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
