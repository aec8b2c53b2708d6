#include <algorithm>
#include <cstring>

#include "core/checked.h"
#include "cpu/driver/run.h"

namespace subbit {
namespace {

class BitsRun : Run {
 public:
  using Run::Run;

  void operator()() const {
    auto* used = scratch<std::uint64_t>(strips_.planes_at);
    auto* different = scratch<std::uint16_t>(strips_.sums_at);
    auto* used_count = scratch<float>(strips_.work_at);
    auto* codes = scratch<std::uint8_t>(strips_.codes_at);
    const std::int64_t rows = stage(used);
    if (kernel_.bits.code) kernel_.bits.code({used, used + plane_words(), rows * row_words(), codes});

    const int size = kernel_size(params_.unit), taps = kernel_taps(params_.unit);
    std::int64_t tap_offset[9];
    for (int t = 0; t < taps; ++t) {
      tap_offset[t] = t / size * params_.dilation_h * row_words() + t % size * params_.dilation_w * words();
    }
    MatchBitsTask match{};
    match.plus = plane_words();
    match.tap_offset = tap_offset;
    match.taps = taps;
    match.words = plan_.bits->words;
    match.halves = plan_.bits->halves;
    match.weights = plan_.bits->weights.data() + strip_.group * plan_.bits->group_bytes;
    match.outputs = strips_.outputs;
    for (std::int64_t chunk = strip_.begin; chunk < strip_.end; chunk += kFinishPixels) {
      const std::int64_t end = std::min(chunk + kFinishPixels, strip_.end);
      for (std::int64_t pixel = chunk; pixel < end; pixel += kBitsPixels) {
        match.pixels = static_cast<int>(std::min<std::int64_t>(kBitsPixels, end - pixel));
        for (int i = 0; i < match.pixels; ++i) {
          const std::int64_t row = (pixel + i) / params_.out_width - strip_.first_row;
          const std::int64_t column = (pixel + i) % params_.out_width - strip_.first_column;
          const std::int64_t word = row * params_.stride_h * row_words() + column * params_.stride_w * words();
          match.used[i] = used + word;
          match.codes[i] = codes + word * 16;
        }
        match.different = different + (pixel - chunk) * strips_.outputs;
        match.used_count = used_count + (pixel - chunk);
        kernel_.bits.match(match);
      }
      finish(chunk, end - chunk, different, -2, used_count);
    }
  }

 private:
  std::int64_t words() const { return plan_.bits->words; }
  std::int64_t row_words() const { return strips_.region_columns * words(); }
  std::int64_t plane_words() const { return strips_.region_rows * row_words(); }

  // The part of the input that the strip reads, padding included, as words of `used`, and of `plus` after them.
  // Returns how many rows there are.
  std::int64_t stage(std::uint64_t* used) const {
    const std::int64_t first_row = strip_.first_row * params_.stride_h - params_.pad_h;
    const std::int64_t first_column = strip_.first_column * params_.stride_w - params_.pad_w;
    const int taps = kernel_size(params_.unit);
    const std::int64_t rows = positions_read(strip_.rows, taps, params_.stride_h, params_.dilation_h);
    const std::int64_t columns = positions_read(strip_.columns, taps, params_.stride_w, params_.dilation_w);
    std::memset(used, 0, static_cast<std::size_t>(rows * row_words()) * sizeof(*used));

    const auto inside = [](std::int64_t first, std::int64_t count, std::int64_t size) {
      const std::int64_t begin = std::clamp<std::int64_t>(first, 0, size);
      return Range{begin, std::clamp<std::int64_t>(first + count, begin, size)};
    };
    const Range y = inside(first_row, rows, params_.height), x = inside(first_column, columns, params_.width);
    if (y.begin == y.end || x.begin == x.end) return rows;
    const Input input = operands_.x_plus ? packed_input(y, x) : pack_input(y, x);
    for (std::int64_t row = y.begin; row < y.end; ++row) {
      const std::int64_t at = (row - first_row) * row_words() + (x.begin - first_column) * words();
      copy_row(input, (row - y.begin) * input.row_words, x.end - x.begin, used + at);
    }
    return rows;
  }

  struct Range {
    std::int64_t begin, end;
  };
  // Words of the first pixel of a part of the image; `nonzero` may be null.
  struct Input {
    const std::uint64_t* plus;
    const std::uint64_t* nonzero;
    std::int64_t row_words;
  };

  // There is one group (conv.cpp).
  Input packed_input(Range rows, Range columns) const {
    const std::int64_t from = ((strip_.image * params_.height + rows.begin) * params_.width + columns.begin) * words();
    return {operands_.x_plus + from, operands_.x_nonzero ? operands_.x_nonzero + from : nullptr,
            params_.width * words()};
  }

  // Floats first become words of the image as it is: rows without gaps all at once.
  Input pack_input(Range rows, Range columns) const {
    const std::int64_t width = columns.end - columns.begin, count = rows.end - rows.begin;
    auto* plus = scratch<std::uint64_t>(strips_.responses_at);
    std::uint64_t* nonzero = plus + count * width * words();
    const float* x = input(0) + rows.begin * params_.x_h + columns.begin * params_.x_w;
    const bool gapless = width == params_.width && params_.x_h == width * params_.x_w;
    for (std::int64_t row = 0; row < (gapless ? 1 : count); ++row) {
      const std::int64_t at = row * width * words();
      const Words to{plus + at, nonzero + at, words(), nullptr, params_.sign_zero};
      kernel_.pack(
          {x + row * params_.x_h, params_.x_c, params_.x_w, plan_.in_group(), gapless ? count * width : width, to});
    }
    return {plus, nonzero, width * words()};
  }

  // Bits after the last channel must not count.
  void copy_row(const Input& input, std::int64_t from, std::int64_t columns, std::uint64_t* used) const {
    const int last = static_cast<int>((plan_.in_group() - 1) % kWordChannels) + 1;
    const std::uint64_t channels_of_last = ~std::uint64_t{0} >> (kWordChannels - last);
    for (std::int64_t column = 0; column < columns; ++column) {
      for (std::int64_t w = 0; w < words(); ++w, ++from, ++used) {
        const std::uint64_t channels = w + 1 == words() ? channels_of_last : ~std::uint64_t{0};
        *used = input.nonzero ? input.nonzero[from] & channels : channels;
        used[plane_words()] = input.plus[from];
      }
    }
  }
};

}  // namespace

void run_bits(const ConvPlan& plan, const ConvOperands& operands, const Strip& strip, std::byte* scratch) {
  BitsRun(plan, operands, strip, scratch)();
}

}  // namespace subbit
