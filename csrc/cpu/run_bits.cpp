#include <algorithm>
#include <cstring>

#include "core/checked.h"
#include "cpu/run.h"

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

  // The part of the input that the strip reads, padding included, as words of `used`, and of `plus` behind them.
  // Returns how many rows there are.
  std::int64_t stage(std::uint64_t* used) const {
    const std::int64_t first_row = strip_.first_row * params_.stride_h - params_.pad_h;
    const std::int64_t first_column = strip_.first_column * params_.stride_w - params_.pad_w;
    const std::int64_t taps = kernel_size(params_.unit);
    const std::int64_t rows = (strip_.rows - 1) * params_.stride_h + (taps - 1) * params_.dilation_h + 1;
    const std::int64_t columns = (strip_.columns - 1) * params_.stride_w + (taps - 1) * params_.dilation_w + 1;
    const std::int64_t begin = std::clamp<std::int64_t>(-first_column, 0, columns);
    const std::int64_t end = std::clamp<std::int64_t>(params_.width - first_column, begin, columns);
    std::memset(used, 0, static_cast<std::size_t>(rows * row_words()) * sizeof(*used));
    for (std::int64_t j = 0; j < rows; ++j) {
      const std::int64_t row = first_row + j;
      if (row < 0 || row >= params_.height || begin == end) continue;
      std::uint64_t* out = used + j * row_words() + begin * words();
      if (operands_.x_plus) {
        copy_row(row, first_column + begin, end - begin, out);
      } else {
        const Words to{out + plane_words(), out, words(), nullptr, params_.sign_zero};
        const float* x = input(0) + row * params_.x_h + (first_column + begin) * params_.x_w;
        kernel_.pack({x, params_.x_c, params_.x_w, plan_.in_group(), end - begin, to});
      }
    }
    return rows;
  }

  // Packed input; there is one group (conv.cpp). Bits behind the last channel must not count.
  void copy_row(std::int64_t row, std::int64_t column, std::int64_t columns, std::uint64_t* used) const {
    const std::int64_t from = ((strip_.image * params_.height + row) * params_.width + column) * words();
    const int last = static_cast<int>((params_.in_channels - 1) % kWordChannels) + 1;
    const std::uint64_t channels_of_last = ~std::uint64_t{0} >> (kWordChannels - last);
    for (std::int64_t i = 0; i < columns * words(); ++i) {
      const std::uint64_t channels = (i + 1) % words() == 0 ? channels_of_last : ~std::uint64_t{0};
      used[i] = operands_.x_nonzero ? operands_.x_nonzero[from + i] & channels : channels;
      used[plane_words() + i] = operands_.x_plus[from + i];
    }
  }
};

}  // namespace

void run_bits(const ConvPlan& plan, const ConvOperands& operands, const Strip& strip, std::byte* scratch) {
  BitsRun(plan, operands, strip, scratch)();
}

}  // namespace subbit
