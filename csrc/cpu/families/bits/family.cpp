// All of the bits family but its kernels: costs, the weight's form, scratch memory, and a strip.
#include "cpu/families/family.h"

#include <algorithm>
#include <cstring>

#include "core/checked.h"
#include "core/phases.h"
#include "cpu/driver/aligned.h"
#include "cpu/driver/planned.h"
#include "cpu/families/table.h"

namespace subbit {

// ---- costs ----------------------------------------------------------------------------------------------

// Nanoseconds, as in families/rows/family.cpp.
struct BitsCosts {
  double call;    // per image
  double value;   // per input value that is packed
  double load;    // per word of a patch and pixel
  double match;   // per 8 outputs, word of a patch and pixel
  double finish;  // per output value
};
const BitsCosts costs_binary_bits_avx512vbmi = {570, 0.21, 0.48, 0.48, 0.32};
const BitsCosts costs_binary_bits_avx2 = {1000, 0.15, 1.2, 0.85, 0.29};
const BitsCosts costs_binary_bits_scalar = {1000, 3.6, 3, 21, 3.3};

namespace {

// Whole images are staged, gaps between taps included, so this family is for taps close together.
constexpr std::int64_t kMaxSpreadOfBits = 4;

const BitsSteps& steps_of(const Kernel& kernel) { return std::get<BitsSteps>(kernel.steps); }

double number(std::int64_t n) { return static_cast<double>(n); }

// ---- the weight -----------------------------------------------------------------------------------------

// The decoded weight.
struct BitsForm final : WeightForm {
  int words = 0;   // of 64 input channels
  int halves = 0;  // of words, that have channels
  std::int64_t group_bytes = 0;
  AlignedBuffer weights;  // of each group, in either of the orders that MatchBitsTask names
};

std::unique_ptr<const BitsForm> make_bits_form(const DecodedWeight& weight, const Plan& plan, std::int64_t groups) {
  const int unit = unit_channels(weight.unit), taps = kernel_taps(weight.unit);
  const std::int64_t channels = weight.units * unit, words = ceil_div(channels, 64);
  const std::int64_t outputs = weight.out_channels / groups;
  const std::int64_t padded = round_up(outputs, kOutputsPerMatch);
  auto made = std::make_unique<BitsForm>();
  BitsForm& form = *made;
  form.words = static_cast<int>(words);
  form.halves = static_cast<int>(ceil_div(channels, 32));
  const bool by_bytes = steps_of(*plan.kernel).code != nullptr;
  form.group_bytes = checked_product({padded, taps, by_bytes ? form.halves * 4 : words * 8}, "prepared weight");
  form.weights = AlignedBuffer(checked_product({groups, form.group_bytes}, "prepared weight"));
  std::byte* out = form.weights.data();
  const auto byte_of = [&](std::int64_t row, int tap, std::int64_t byte) {  // eight channels are a byte
    if (!by_bytes) return ((row / 8 * taps + tap) * words + byte / 8) * 64 + row % 8 * 8 + byte % 8;
    const std::int64_t lane = row % 16 * 2 + row / 16 % 2;
    return ((row / 32 * taps + tap) * form.halves * 4 + byte) * 32 + lane;
  };
  for (std::int64_t o = 0; o < weight.out_channels; ++o) {
    const std::int64_t row = o / outputs * padded + o % outputs;
    for (std::int64_t c = 0; c < channels; ++c) {
      const Codeword codeword = weight.codebook[weight.indices[o * weight.units + c / unit]];
      for (int t = 0; t < taps; ++t) {
        const int bit = codeword >> (c % unit + t) & 1;  // one of the two is always 0
        out[byte_of(row, t, c / 8)] |= static_cast<std::byte>(bit << (c % 8));
      }
    }
  }
  return made;
}

// ---- a strip --------------------------------------------------------------------------------------------

class BitsConv final : public PlannedConv {
 public:
  BitsConv(const ConvPlan& plan, const BitsForm& form) : PlannedConv(plan), form_(form) {
    const ConvProblem& params = plan.params;
    const int taps = kernel_size(params.unit);
    region_rows_ = positions_read(plan.strips.rows, taps, params.stride_h, params.dilation_h);
    region_columns_ = positions_read(plan.strips.columns, taps, params.stride_w, params.dilation_w);
    different_ = scratch_.take<std::uint16_t>({kFinishPixels, plan.strips.outputs});
    staged_ = scratch_.take<std::uint64_t>({2, region_rows_, region_columns_, form.words});
    packed_ = scratch_.take<std::uint64_t>({2, region_rows_, region_columns_, form.words});
    if (steps_of(plan.kernel()).code) {
      codes_ = scratch_.take<std::uint8_t>({region_rows_, region_columns_, form.words, 16});
    }
    used_count_ = scratch_.take<float>({kFinishPixels});
  }

  void run(const ConvOperands& operands, const Strip& strip, std::byte* scratch) const override;

 private:
  friend class BitsRun;
  const BitsForm& form_;
  std::int64_t region_rows_, region_columns_;  // the padded part of the input that a strip reads, at most
  ScratchArray<std::uint16_t> different_;      // of kFinishPixels, [pixel][output]
  ScratchArray<std::uint64_t> staged_;         // words of `used`, and then of `plus`
  ScratchArray<std::uint64_t> packed_;         // of the image as it is
  ScratchArray<std::uint8_t> codes_;           // of every word, with a code step
  ScratchArray<float> used_count_;             // of kFinishPixels
};

class BitsRun : StripRun {
 public:
  BitsRun(const BitsConv& conv, const ConvOperands& operands, const Strip& strip, std::byte* scratch)
      : StripRun(conv, operands, strip, scratch), conv_(conv), form_(conv.form_), steps_(steps_of(kernel_)) {}

  void operator()() const {
    auto* used = conv_.staged_.in(scratch_);
    auto* different = conv_.different_.in(scratch_);
    auto* used_count = conv_.used_count_.in(scratch_);
    auto* codes = conv_.codes_.in(scratch_);
    const std::int64_t rows = stage(used);
    if (steps_.code) steps_.code({used, used + plane_words(), rows * row_words(), codes});

    const int size = kernel_size(params_.unit), taps = kernel_taps(params_.unit);
    std::int64_t tap_offset[9];
    for (int t = 0; t < taps; ++t) {
      tap_offset[t] = t / size * params_.dilation_h * row_words() + t % size * params_.dilation_w * words();
    }
    MatchBitsTask match{};
    match.plus = plane_words();
    match.tap_offset = tap_offset;
    match.taps = taps;
    match.words = form_.words;
    match.halves = form_.halves;
    match.weights = form_.weights.data() + strip_.group * form_.group_bytes;
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
        steps_.match(match);
      }
      finish(chunk, end - chunk, {different, strips_.outputs, -2, used_count, true});
    }
  }

 private:
  std::int64_t words() const { return form_.words; }
  std::int64_t row_words() const { return conv_.region_columns_ * words(); }
  std::int64_t plane_words() const { return conv_.region_rows_ * row_words(); }

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
    auto* plus = conv_.packed_.in(scratch_);
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

  const BitsConv& conv_;
  const BitsForm& form_;
  const BitsSteps& steps_;
};

void BitsConv::run(const ConvOperands& operands, const Strip& strip, std::byte* scratch) const {
  BitsRun(*this, operands, strip, scratch)();
}

// ---- the family -----------------------------------------------------------------------------------------

class BitsFamily final : public Family {
 public:
  const char* name() const override { return "bits"; }

  bool fits(const Problem& problem) const override { return problem.spread <= kMaxSpreadOfBits; }

  int units_per_block(const Kernel& /*kernel*/, const Problem& problem) const override {
    return static_cast<int>(problem.units);
  }

  double nanoseconds(const Kernel& kernel, const Problem& p) const override {
    const BitsCosts& c = *steps_of(kernel).costs;
    const double words = number(kernel_taps(p.unit) * p.words());
    double work = c.value * number(p.channels() * p.input_pixels);
    work += words * number(p.pixels) * (c.load + c.match * number(padded_outputs(p.outputs) / 8));
    work += c.finish * number(p.outputs * p.pixels);
    return c.call + number(p.groups) * work;
  }

  bool reads_packed(const ConvProblem& params) const override { return params.groups == 1; }
  bool reads_parts_of_rows(const ConvProblem& /*params*/) const override { return true; }
  std::int64_t padded_outputs(std::int64_t outputs) const override { return round_up(outputs, kOutputsPerMatch); }

  std::int64_t strip_pixels(const Kernel& kernel, const Problem& problem) const override {
    // Per 64 channels and input pixel two words, as they are packed and as they are staged; and as much for codes.
    const std::int64_t bytes = steps_of(kernel).code ? 48 : 32;
    return std::min(8 * kStripBytes / (bytes * problem.words() * problem.spread * problem.spread), kMostStripPixels);
  }

  std::unique_ptr<const WeightForm> make_form(const DecodedWeight& weight, const Plan& plan,
                                              std::int64_t groups) const override {
    return make_bits_form(weight, plan, groups);
  }

  std::unique_ptr<const PlannedConv> plan(const ConvPlan& plan, const WeightForm& form) const override {
    return std::make_unique<BitsConv>(plan, static_cast<const BitsForm&>(form));
  }
};

}  // namespace

const Family& bits_family() {
  static const BitsFamily family;
  return family;
}

}  // namespace subbit
