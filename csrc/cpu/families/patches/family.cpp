// All of the patches family but its kernels: costs, the weight's form, scratch memory, and a strip.
#include "cpu/families/family.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "core/checked.h"
#include "cpu/driver/aligned.h"
#include "cpu/driver/planes.h"
#include "cpu/driver/planned.h"
#include "cpu/families/patches/patch_map.h"
#include "cpu/families/table.h"
#include "cpu/weight.h"

namespace subbit {

// ---- costs ----------------------------------------------------------------------------------------------

// Nanoseconds, as in families/rows/family.cpp.
struct PatchesCosts {
  double call;     // per image
  double plane;    // per plane of a unit, and per unit and kChunk pixels
  double value;    // per input value that is staged
  double strided;  // times that, where columns are strided
  double look_up;  // per 64 outputs, unit and pixel
  double finish;   // per output value
};
const PatchesCosts costs_binary_patches_avx512vbmi = {640, 18, 0.15, 4, 0.32, 0.28};
const PatchesCosts costs_binary_patches_scalar = {640, 300, 3.5, 1, 43, 3.3};

namespace {

// 64 codewords fill a register of 512 bits; and the codes of 128, with the nine places of PatchMap, would not fit 16.
constexpr int kMaxTauOfPatches = 6;
constexpr std::int64_t kOutputsPerVector = 64;
constexpr std::int64_t kMostPatchPixels = 4096;  // one bit each

const PatchesSteps& steps_of(const Kernel& kernel) { return std::get<PatchesSteps>(kernel.steps); }

double number(std::int64_t n) { return static_cast<double>(n); }

// ---- the weight -----------------------------------------------------------------------------------------

// The bytes of a row of responses: a power of two, at least 8.
int slot_of(std::size_t codewords) { return std::max(8, 1 << tau_of(static_cast<int>(codewords))); }

class PatchesForm final : public WeightForm {
 public:
  PatchesForm(const DecodedWeight& weight, std::int64_t groups);

  // Of the last few sizes that the weight was used with.
  std::shared_ptr<const PatchMap> map_of(const ConvProblem& params) const {
    constexpr std::size_t kMostSizes = 8;
    const PatchMapKey key = patch_map_key(params);
    const std::lock_guard<std::mutex> lock(forms_mutex());
    const auto found = maps_.find(key);
    if (found != maps_.end()) return found->second;
    if (maps_.size() >= kMostSizes) maps_.clear();
    return maps_[key] = std::make_shared<const PatchMap>(params, slot / 8);
  }

  int slot;
  AlignedBuffer responses;  // [place of PatchMap][number of a patch][slot]
  AlignedBuffer positions;  // [group][outputs / 64][unit][lane]

 private:
  mutable std::map<PatchMapKey, std::shared_ptr<const PatchMap>> maps_;
};

PatchesForm::PatchesForm(const DecodedWeight& weight, std::int64_t groups) : slot(slot_of(weight.codebook.size())) {
  const int taps = unit_taps(weight.unit);
  const std::vector<std::uint16_t> places = PatchMap::places(weight.unit);
  responses = AlignedBuffer((places.size() << taps) * static_cast<std::size_t>(slot));
  std::byte* row = responses.data();
  for (const std::uint16_t inside : places) {
    for (int patch = 0; patch < 1 << taps; ++patch, row += slot) {
      for (std::size_t k = 0; k < weight.codebook.size(); ++k) {
        row[k] = static_cast<std::byte>(__builtin_popcount(inside & ~(patch ^ weight.codebook[k])));
      }
    }
  }

  const std::int64_t outputs = weight.out_channels / groups;
  const std::int64_t padded = round_up(outputs, kOutputsPerVector);
  positions = AlignedBuffer(checked_product({groups, padded, weight.units}, "prepared weight"));
  std::byte* out = positions.data();
  for (std::int64_t group = 0; group < groups; ++group) {
    for (std::int64_t o = 0; o < padded; o += kOutputsPerVector) {
      for (std::int64_t u = 0; u < weight.units; ++u) {
        for (int lane = 0; lane < kOutputsPerVector; ++lane, ++out) {
          const std::int64_t channel = o + output_of_lane(lane);
          if (channel >= outputs) continue;
          *out = static_cast<std::byte>(weight.indices[(group * outputs + channel) * weight.units + u]);
        }
      }
    }
  }
}

// ---- a strip --------------------------------------------------------------------------------------------

class PatchesConv final : public PlannedConv {
 public:
  PatchesConv(const ConvPlan& plan, const PatchesForm& form)
      : PlannedConv(plan), form_(form), planes_(plan_planes(plan.params)) {
    const ConvProblem& params = plan.params;
    const std::int64_t units = plan.problem.units;
    plane_stride_ = 2 + ceil_div(plane_elements(planes_, plan.strips, plan.kernel()) + kChunk, 64);
    unit_stride_ = plane_stride_ * planes_.planes;
    staged_ = scratch_.take<std::uint64_t>({2, units, unit_stride_});
    codes_ = scratch_.take<std::uint16_t>({kChunk, units});
    sums_ = scratch_.take<std::uint16_t>({kChunk, plan.strips.outputs});
    offset_ = scratch_.take<float>({kChunk});
    packs_input_ = !params.x_is_packed && params.x_c == 1 && params.x_w > 1 && params.x_h == params.width * params.x_w;
    if (packs_input_) {
      const std::int64_t read =
          positions_read(plan.strips.rows, kernel_size(params.unit), params.stride_h, params.dilation_h);
      packed_ = scratch_.take<std::uint64_t>({2, std::min(read, params.height), params.width, plan.problem.words()});
    }
    map_ = form.map_of(params);
  }

  void run(const ConvOperands& operands, const Strip& strip, std::byte* scratch) const override;

 private:
  friend class PatchesRun;
  const PatchesForm& form_;
  PlanePlan planes_;
  std::shared_ptr<const PatchMap> map_;
  std::int64_t plane_stride_, unit_stride_;  // words from plane to plane and from unit to unit
  bool packs_input_;                         // before it is staged
  ScratchArray<std::uint64_t> staged_;       // planes of `plus`, and then of `positive`
  ScratchArray<std::uint16_t> codes_;        // of a chunk
  ScratchArray<std::uint16_t> sums_;         // of a chunk, [pixel][output]
  ScratchArray<float> offset_;               // of a chunk
  ScratchArray<std::uint64_t> packed_;       // rows of the image: words of signs, and then of what is not zero
};

class PatchesRun : StripRun {
 public:
  PatchesRun(const PatchesConv& conv, const ConvOperands& operands, const Strip& strip, std::byte* scratch)
      : StripRun(conv, operands, strip, scratch), conv_(conv), form_(conv.form_), steps_(steps_of(kernel_)) {}

  void operator()() const {
    static constexpr std::uint16_t kWholePatches[kChunk] = {};
    auto* plus = conv_.staged_.in(scratch_);
    std::uint64_t* positive = plus + plan_.problem.units * conv_.unit_stride_;
    auto* codes = conv_.codes_.in(scratch_);
    auto* sums = conv_.sums_.in(scratch_);
    auto* offset = conv_.offset_.in(scratch_);
    const PatchMap& map = *conv_.map_;
    const int taps = unit_taps(params_.unit), slot = form_.slot;
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
    code.unit_stride = conv_.unit_stride_;
    code.units = plan_.problem.units;
    code.codes = codes;
    code.block_stride = plan_.problem.units * kCodePixels;
    LookUpTask look_up{};
    look_up.responses = reinterpret_cast<const std::uint8_t*>(form_.responses.data());
    look_up.slot = slot;
    look_up.units = plan_.problem.units;
    look_up.positions = reinterpret_cast<const std::uint8_t*>(form_.positions.data()) +
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
        steps_.code(code);
        look_up.add = pass == 1;
        for (int p = 0; p < pixels; p += kCodePixels) {
          look_up.codes = codes + p / kCodePixels * code.block_stride;
          look_up.pixels = std::min(kCodePixels, pixels - p);
          look_up.sums = sums + p * strips_.outputs;
          steps_.look_up(look_up);
        }
      }
      for (int p = 0; p < pixels; ++p) offset[p] = -units * static_cast<float>(twice ? taps : map.taps[pixel + p]);
      finish(pixel, pixels, {sums, strips_.outputs, twice ? 1.0f : 2.0f, offset, true});
    }
  }

 private:
  // All units as bits: `plus` planes, and the `positive` ones after them. Returns whether there are zeros.
  bool stage(std::uint64_t* plus, std::uint64_t* positive) const {
    const Staging staging = plan_staging(params_, conv_.planes_, strip_);
    if (operands_.x_plus) {
      const std::int64_t image = strip_.image * params_.height * params_.width * words();
      const std::uint64_t* nonzero = operands_.x_nonzero ? operands_.x_nonzero + image : nullptr;
      return stage_packed(staging, {operands_.x_plus + image, nonzero, 1, 1}, plus, positive);
    }
    if (conv_.packs_input_) return stage_packed(staging, pack_input(), plus, positive);
    bool zeros = false;
    for (std::int64_t u = 0; u < plan_.problem.units; ++u) {
      for (int i = 0; i < conv_.planes_.planes; ++i) {
        StagePatchesTask task{staging.task[i], nullptr, nullptr};
        task.input.x = input(u) + staging.image_offset[i];
        const std::int64_t at = u * conv_.unit_stride_ + i * conv_.plane_stride_ + 1;  // a word before each plane
        task.plus = plus + at;
        task.positive = positive + at;
        zeros |= steps_.stage(task);
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
    auto* plus = conv_.packed_.in(scratch_);
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
      for (int i = 0; i < (is_3x3 ? conv_.planes_.planes : 1); ++i) {
        StagePackedTask task{};
        task.input = staging.task[i];
        task.input.step = in_words(task.input.step);
        task.input.row_step = in_words(task.input.row_step);
        const std::int64_t from = in_words(staging.image_offset[i]) + c / kWordChannels;
        task.words = image.plus + from;
        task.nonzero = image.nonzero ? image.nonzero + from : nullptr;
        task.channels = static_cast<int>(std::min<std::int64_t>(kWordChannels, plan_.in_group() - c));
        task.channel_stride = is_3x3 ? conv_.unit_stride_ : conv_.plane_stride_;
        const std::int64_t at = c * task.channel_stride + i * conv_.plane_stride_ + 1;
        task.plus = plus + at;
        task.positive = positive + at;
        zeros |= steps_.stage_packed(task);
      }
    }
    return zeros;
  }

  // The bit of a unit's planes that tap t of a pixel is.
  std::int64_t tap_bit(std::int64_t pixel, int t) const {
    const PlanePlan& planes = conv_.planes_;
    const bool is_3x3 = params_.unit == Unit::k3x3;
    const std::int64_t plane = is_3x3 ? planes.plane_of_tap(t / 3, t % 3) : t;
    const std::int64_t element = is_3x3 ? planes.element_of_tap(t / 3, t % 3, strip_.columns) : 0;
    return (plane * conv_.plane_stride_ + 1) * 64 + element + place(pixel);
  }

  const PatchesConv& conv_;
  const PatchesForm& form_;
  const PatchesSteps& steps_;
};

void PatchesConv::run(const ConvOperands& operands, const Strip& strip, std::byte* scratch) const {
  PatchesRun(*this, operands, strip, scratch)();
}

// ---- the family -----------------------------------------------------------------------------------------

class PatchesFamily final : public Family {
 public:
  const char* name() const override { return "patches"; }

  bool fits(const Problem& problem) const override { return tau_of(problem.codewords) <= kMaxTauOfPatches; }

  int units_per_block(const Kernel& /*kernel*/, const Problem& problem) const override {
    return static_cast<int>(problem.units);
  }

  double nanoseconds(const Kernel& kernel, const Problem& p) const override {
    const PatchesCosts& c = *steps_of(kernel).costs;
    const double units = number(p.units);
    double work = c.plane * (p.planes() + units * number(ceil_div(p.pixels, kChunk)));
    work += c.value * p.staged_values(c.strided);
    work += units * number(p.pixels) * c.look_up * number(ceil_div(p.outputs, kOutputsPerVector));
    work += c.finish * number(p.outputs * p.pixels);
    return c.call + number(p.groups) * work;
  }

  bool reads_packed(const ConvProblem& params) const override { return params.groups == 1; }
  bool reads_parts_of_rows(const ConvProblem& params) const override { return !plan_planes(params).shared; }
  std::int64_t padded_outputs(std::int64_t outputs) const override { return round_up(outputs, kOutputsPerVector); }

  std::int64_t strip_pixels(const Kernel& /*kernel*/, const Problem& problem) const override {
    return std::min(4 * kStripBytes / problem.channels(), kMostPatchPixels);  // two bits per channel
  }

  std::unique_ptr<const WeightForm> make_form(const DecodedWeight& weight, const Plan& /*plan*/,
                                              std::int64_t groups) const override {
    return std::make_unique<PatchesForm>(weight, groups);
  }

  std::unique_ptr<const PlannedConv> plan(const ConvPlan& plan, const WeightForm& form) const override {
    return std::make_unique<PatchesConv>(plan, static_cast<const PatchesForm&>(form));
  }
};

}  // namespace

const Family& patches_family() {
  static const PatchesFamily family;
  return family;
}

}  // namespace subbit
