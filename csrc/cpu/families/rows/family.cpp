// All of the rows family but its kernels: costs, the weight's form, scratch memory, and a strip.
#include "cpu/families/family.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/checked.h"
#include "cpu/driver/planes.h"
#include "cpu/driver/planned.h"
#include "cpu/families/rows/patterns.h"
#include "cpu/families/rows/respond_code.h"
#include "cpu/families/table.h"

namespace subbit {

// ---- costs ----------------------------------------------------------------------------------------------

// Nanoseconds: least squares of some 200 problems on one core of an AMD Zen 4 at 3.7 GHz (benchmarks/NOTES.md). What
// decides is their proportion to each other, to other families' and to the dense convolution's, which differs less
// between machines than they do. Those of scalar kernels are of a Zen 3.
struct RowsCosts {
  double call;      // per image
  double plane;     // per plane of a unit
  double value;     // per input value that is staged
  double strided;   // times that, where columns are strided
  double respond;   // per unit and tile
  double codeword;  // per codeword, unit and tile
  double gather;    // per output, unit and tile
  double open;      // per output and tile, once per block of units
  double finish;    // per output value
};
constexpr RowsCosts kFloatCosts = {840, 8, 0.2, 1.5, 4.6, 0.61, 0.28, 0.56, 0.25};
constexpr RowsCosts kBinaryCosts = {860, 14, 0.2, 1.5, 0, 0.3, 0.25, 0.77, 0.25};
const RowsCosts costs_binary_rows_avx2 = kBinaryCosts;
const RowsCosts costs_float_rows_avx512 = kFloatCosts;
const RowsCosts costs_float_rows_avx2 = kFloatCosts;
const RowsCosts costs_binary_rows_scalar = {860, 0, 1, 1, 1100, 57, 5, 0, 3};
const RowsCosts costs_float_rows_scalar = {840, 0, 1, 1, 100, 30, 16, 0, 1};

namespace {

constexpr double kUnpack = 1.5;  // per input value that is given packed

// Responses of a block of units stay in an L1 of 32 KiB.
constexpr std::int64_t kBlockBytes = 24 * 1024;
static_assert(kBlockBytes <= 65536, "offsets are 16 bits");
constexpr std::int64_t kFloatUnitsPerBlock = 32;
// Bytes of +-9 may be added 14 times (126).
constexpr std::int64_t kBinaryUnitsPerBlock = 14;
static_assert(kBinaryUnitsPerBlock * unit_taps(Unit::k3x3) <= 127, "byte sums must not overflow");

// Bytes of a staged value or response, and of a sum.
std::int64_t element_bytes(const Kernel& kernel) { return kernel.activations == Activations::kBinary ? 1 : 4; }
std::int64_t sum_bytes(const Kernel& kernel) { return kernel.activations == Activations::kBinary ? 2 : 4; }

const RowsSteps& steps_of(const Kernel& kernel) { return std::get<RowsSteps>(kernel.steps); }

double number(std::int64_t n) { return static_cast<double>(n); }

// ---- the weight -----------------------------------------------------------------------------------------

// An offset is the row of a unit's codeword in a block of responses.
struct RowsForm final : WeightForm {
  std::unique_ptr<const RespondCode> respond;  // or null: the kernel's own step reads terms
  std::vector<RowTerms> terms;                 // of each codeword
  std::vector<std::uint16_t> offsets;          // [group][block][outputs / kOutputsPerStep][units][kOutputsPerStep]
};

// Where the signed sums of a codeword's parts are.
RowTerms terms_of(Codeword codeword, Unit unit, int pixels) {
  const int patterns = unit == Unit::k3x3 ? kPatternsOfRow : kPatternsOfHalf;
  RowTerms terms{};
  for (int i = 0; i < (unit == Unit::k3x3 ? 3 : 2); ++i) {
    const SignedPattern part = part_of(codeword, unit, i);
    terms.part[i] = static_cast<std::uint16_t>((2 * (i * patterns + part.pattern) + part.minus) * pixels);
  }
  return terms;
}

std::unique_ptr<const RowsForm> make_rows_form(const DecodedWeight& weight, const Plan& plan, std::int64_t groups) {
  auto made = std::make_unique<RowsForm>();
  RowsForm& form = *made;
  for (const Codeword k : weight.codebook) form.terms.push_back(terms_of(k, weight.unit, plan.kernel->pixels));
  const std::int64_t row_bytes = plan.kernel->pixels * element_bytes(*plan.kernel);
  const std::int64_t block = std::min<std::int64_t>(plan.units_per_block, weight.units);
  form.respond = RespondCode::make(weight.unit, weight.codebook, *plan.kernel, block * row_bytes);
  const std::int64_t outputs = weight.out_channels / groups;
  const std::int64_t padded = round_up(outputs, kOutputsPerStep);
  form.offsets.resize(checked_product({groups, padded, weight.units}, "prepared weight"), 0);
  std::uint16_t* out = form.offsets.data();
  for (std::int64_t group = 0; group < groups; ++group) {
    for (std::int64_t first = 0; first < weight.units; first += plan.units_per_block) {
      const std::int64_t units = std::min<std::int64_t>(plan.units_per_block, weight.units - first);
      for (std::int64_t o = 0; o < padded; o += kOutputsPerStep) {
        for (std::int64_t u = 0; u < units; ++u) {
          for (int i = 0; i < kOutputsPerStep; ++i, ++out) {
            if (o + i >= outputs) continue;
            const int k = weight.indices[(group * outputs + o + i) * weight.units + first + u];
            *out = static_cast<std::uint16_t>((k * block + u) * row_bytes);
          }
        }
      }
    }
  }
  return made;
}

// ---- a strip --------------------------------------------------------------------------------------------

class RowsConv final : public PlannedConv {
 public:
  RowsConv(const ConvPlan& plan, const RowsForm& form)
      : PlannedConv(plan), form_(form), planes_(plan_planes(plan.params)) {
    const Kernel& kernel = plan.kernel();
    const std::int64_t element = element_bytes(kernel);
    const std::int64_t block = std::min<std::int64_t>(plan.plan.units_per_block, plan.problem.units);
    const std::int64_t plane_bytes = plane_elements(planes_, plan.strips, kernel) * element + kPlaneSlack;
    // Whole cache lines, and an odd number of them, so that planes do not fall on the same cache sets.
    plane_stride_ = (ceil_div(plane_bytes, ScratchAllocator::kLine) | 1) * ScratchAllocator::kLine / element;
    unit_stride_ = plane_stride_ * planes_.planes;
    row_bytes_ = block * kernel.pixels * element;
    mask_bytes_ = round_up(plan.strips.pixels * element, ScratchAllocator::kLine);
    sums_ = scratch_.take<std::byte>({plan.strips.pixels, plan.strips.outputs, sum_bytes(kernel)});
    scratch_.take<std::byte>({kPlaneSlack});
    staged_ = scratch_.take<std::byte>({block, unit_stride_, element});
    responses_ = scratch_.take<std::byte>({row_bytes_, plan.problem.codewords});
    masks_ = scratch_.take<std::byte>({2, mask_bytes_});
    work_ = scratch_.take<std::byte>({kRespondScratch});
  }

  void run(const ConvOperands& operands, const Strip& strip, std::byte* scratch) const override;

 private:
  friend class RowsRun;
  const RowsForm& form_;
  PlanePlan planes_;
  std::int64_t plane_stride_, unit_stride_;  // elements from plane to plane and from unit to unit
  std::int64_t row_bytes_;                   // from row to row of a block of responses
  std::int64_t mask_bytes_;                  // from mask to mask
  ScratchArray<std::byte> sums_;             // [tile][output][pixels of a tile]
  ScratchArray<std::byte> staged_;           // [unit of a block][plane]
  ScratchArray<std::byte> responses_;        // [codeword][unit of a block][pixels of a tile]
  ScratchArray<std::byte> masks_;            // two: of first taps and of last taps, [pixel of the strip]
  ScratchArray<std::byte> work_;             // of the respond step
};

class RowsRun : StripRun {
 public:
  RowsRun(const RowsConv& conv, const ConvOperands& operands, const Strip& strip, std::byte* scratch)
      : StripRun(conv, operands, strip, scratch),
        conv_(conv),
        steps_(steps_of(kernel_)),
        element_bytes_(element_bytes(kernel_)) {}

  void operator()() const {
    const std::int64_t tile_sums = strips_.outputs * kernel_.pixels * sum_bytes(kernel_);
    const std::int64_t tiles = ceil_div(strip_.end - strip_.begin, kernel_.pixels);
    std::byte* sums = conv_.sums_.in(scratch_);
    std::byte* planes = conv_.staged_.in(scratch_);
    std::memset(sums, 0, tiles * tile_sums);
    fill_masks(conv_.masks_.in(scratch_));

    Staging staging = plan_staging(params_, conv_.planes_, strip_);
    RespondRowsTask respond = respond_task();
    const std::uint16_t* offsets = conv_.form_.offsets.data() + strip_.group * strips_.outputs * plan_.problem.units;
    for (std::int64_t first = 0; first < plan_.problem.units; first += plan_.plan.units_per_block) {
      const int units =
          static_cast<int>(std::min<std::int64_t>(plan_.plan.units_per_block, plan_.problem.units - first));
      for (std::int64_t u = 0; u < units; ++u) {
        for (int i = 0; i < conv_.planes_.planes; ++i) {
          StageTask& task = staging.task[i];
          task.x = input(first + u) + staging.image_offset[i];
          task.plane = planes + (u * conv_.unit_stride_ + i * conv_.plane_stride_) * element_bytes_;
          task.binarize = plan_.plan.binarize;
          steps_.stage(task);
        }
      }
      respond.units = units;
      for (std::int64_t tile = 0; tile < tiles; ++tile) {
        const std::int64_t pixel = strip_.begin + tile * kernel_.pixels;
        place_tile(pixel, respond);
        if (conv_.form_.respond) {
          (*conv_.form_.respond)(respond);
        } else {
          steps_.respond(respond);
        }
        const int pixels = static_cast<int>(std::min<std::int64_t>(kernel_.pixels, strip_.end - pixel));
        steps_.gather({respond.rows, offsets, units, strips_.outputs, pixels, sums + tile * tile_sums});
      }
      offsets += strips_.outputs * units;
    }
    const std::int64_t some = kFinishPixels / kernel_.pixels;
    for (std::int64_t tile = 0; tile < tiles; tile += some) {
      const std::int64_t pixel = strip_.begin + tile * kernel_.pixels;
      const std::int64_t pixels = std::min<std::int64_t>(kFinishPixels, strip_.end - pixel);
      finish(pixel, pixels, {sums + tile * tile_sums, strips_.outputs * kernel_.pixels, 1, nullptr, false});
    }
  }

 private:
  // What is left of the first and last taps of kernel rows where planes are shared: nothing at the edge that they
  // would reach across.
  void fill_masks(std::byte* masks) const {
    std::memset(masks, 0xff, 2 * conv_.mask_bytes_);
    if (!conv_.planes_.shared) return;
    const auto clear = [&](std::byte* mask, std::int64_t column) {
      std::int64_t pixel = strip_.first_row * params_.out_width + column;
      if (pixel < strip_.begin) pixel += params_.out_width;
      for (; pixel < strip_.end; pixel += params_.out_width) {
        std::memset(mask + (pixel - strip_.begin) * element_bytes_, 0, static_cast<std::size_t>(element_bytes_));
      }
    };
    if (conv_.planes_.tap_shift[0] < 0) clear(masks, 0);
    if (conv_.planes_.tap_shift[2] > 0) clear(masks + conv_.mask_bytes_, params_.out_width - 1);
  }

  // What does not change from tile to tile; planes hold the units of a block.
  RespondRowsTask respond_task() const {
    RespondRowsTask task{};
    task.terms = conv_.form_.terms.data();
    task.codewords = plan_.problem.codewords;
    task.unit = params_.unit;
    task.channel_bytes = conv_.plane_stride_ * element_bytes_;
    task.unit_bytes = conv_.unit_stride_ * element_bytes_;
    task.row_bytes = conv_.row_bytes_;
    task.rows = conv_.responses_.in(scratch_);
    task.scratch = conv_.work_.in(scratch_);
    return task;
  }

  // Where the tile's first pixel is read.
  void place_tile(std::int64_t pixel, RespondRowsTask& task) const {
    const PlanePlan& planes = conv_.planes_;
    const std::byte* base = conv_.staged_.in(scratch_);
    const auto element = [&](int row, int column) {
      return planes.plane_of_tap(row, column) * conv_.plane_stride_ +
             planes.element_of_tap(row, column, strip_.columns) + place(pixel);
    };
    if (params_.unit == Unit::k8x1x1) {
      task.channels = base + place(pixel) * element_bytes_;
      return;
    }
    for (int row = 0; row < 3; ++row) task.row[row] = base + element(row, 1) * element_bytes_;
    task.first_tap = (element(0, 0) - element(0, 1)) * element_bytes_;
    task.last_tap = (element(0, 2) - element(0, 1)) * element_bytes_;
    task.first_mask = conv_.masks_.in(scratch_) + (pixel - strip_.begin) * element_bytes_;
    task.last_mask = static_cast<const std::byte*>(task.first_mask) + conv_.mask_bytes_;
  }

  const RowsConv& conv_;
  const RowsSteps& steps_;
  const std::int64_t element_bytes_;
};

void RowsConv::run(const ConvOperands& operands, const Strip& strip, std::byte* scratch) const {
  RowsRun(*this, operands, strip, scratch)();
}

// ---- the family -----------------------------------------------------------------------------------------

class RowsFamily final : public Family {
 public:
  const char* name() const override { return "rows"; }

  bool fits(const Problem& /*problem*/) const override { return true; }

  int units_per_block(const Kernel& kernel, const Problem& problem) const override {
    const std::int64_t row_bytes = kernel.pixels * element_bytes(kernel);
    const std::int64_t most = kernel.activations == Activations::kBinary ? kBinaryUnitsPerBlock : kFloatUnitsPerBlock;
    return static_cast<int>(std::clamp<std::int64_t>(kBlockBytes / (problem.codewords * row_bytes), 1, most));
  }

  double nanoseconds(const Kernel& kernel, const Problem& p) const override {
    const RowsCosts& c = *steps_of(kernel).costs;
    const double units = number(p.units), tiles = number(ceil_div(p.pixels, kernel.pixels));
    const double outputs = number(padded_outputs(p.outputs)), blocks = units / units_per_block(kernel, p);
    double work = c.plane * p.planes() + c.value * p.staged_values(c.strided);
    if (p.packed_input) work += kUnpack * number(p.channels() * p.input_pixels);
    work += tiles * units * (c.respond + c.codeword * p.codewords + c.gather * outputs);
    work += tiles * c.open * outputs * blocks;
    work += c.finish * number(p.outputs * p.pixels);
    return c.call + number(p.groups) * work;
  }

  bool reads_packed(const ConvProblem& /*params*/) const override { return false; }
  bool reads_parts_of_rows(const ConvProblem& params) const override { return !plan_planes(params).shared; }
  std::int64_t padded_outputs(std::int64_t outputs) const override { return round_up(outputs, kOutputsPerStep); }

  std::int64_t strip_pixels(const Kernel& kernel, const Problem& problem) const override {
    return std::min(kStripBytes / (padded_outputs(problem.outputs) * sum_bytes(kernel)), kMostStripPixels);
  }

  std::unique_ptr<const WeightForm> make_form(const DecodedWeight& weight, const Plan& plan,
                                              std::int64_t groups) const override {
    return make_rows_form(weight, plan, groups);
  }

  std::unique_ptr<const PlannedConv> plan(const ConvPlan& plan, const WeightForm& form) const override {
    return std::make_unique<RowsConv>(plan, static_cast<const RowsForm&>(form));
  }
};

}  // namespace

const Family& rows_family() {
  static const RowsFamily family;
  return family;
}

}  // namespace subbit
