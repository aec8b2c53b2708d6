#include "cpu/planner/select.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "core/checked.h"
#include "core/packed.h"
#include "cpu/families/kernels.h"

namespace subbit {
namespace {

constexpr int kMaxTauOfPatches = 6;  // 64 codewords fill a 512-bit register

constexpr Kernel kKernels[] = {
#define SUBBIT_ROWS(NAME, LEVEL, ACTIVATIONS, PIXELS) \
  {#NAME,                                             \
   Level::LEVEL,                                      \
   Activations::ACTIVATIONS,                          \
   Layout::kRows,                                     \
   PIXELS,                                            \
   kMaxTau,                                           \
   {stage_##NAME, respond_##NAME, gather_##NAME},     \
   {},                                                \
   {},                                                \
   finish_##NAME,                                     \
   pack_##NAME},
#define SUBBIT_PATCHES(NAME, LEVEL, ACTIVATIONS, PIXELS)             \
  {#NAME,                                                            \
   Level::LEVEL,                                                     \
   Activations::ACTIVATIONS,                                         \
   Layout::kPatches,                                                 \
   PIXELS,                                                           \
   kMaxTauOfPatches,                                                 \
   {},                                                               \
   {stage_##NAME, stage_packed_##NAME, code_##NAME, look_up_##NAME}, \
   {},                                                               \
   finish_##NAME,                                                    \
   pack_##NAME},
#define SUBBIT_BITS(NAME, LEVEL, ACTIVATIONS, PIXELS)                                 \
  {#NAME, Level::LEVEL, Activations::ACTIVATIONS, Layout::kBits, PIXELS,     kMaxTau, \
   {},    {},           {nullptr, match_##NAME},  finish_##NAME, pack_##NAME},
#define SUBBIT_CODED_BITS(NAME, LEVEL, ACTIVATIONS, PIXELS)                              \
  {#NAME, Level::LEVEL, Activations::ACTIVATIONS,    Layout::kBits, PIXELS,     kMaxTau, \
   {},    {},           {code_##NAME, match_##NAME}, finish_##NAME, pack_##NAME},
#include "cpu/kernels.inc"
#undef SUBBIT_ROWS
#undef SUBBIT_PATCHES
#undef SUBBIT_BITS
#undef SUBBIT_CODED_BITS
};

// Bits are staged for whole images, gaps between taps included, so they are for taps close together.
constexpr std::int64_t kMaxSpreadOfBits = 4;

int units_per_block(const Kernel& kernel, const Problem& problem) {
  if (kernel.layout != Layout::kRows) return static_cast<int>(problem.units);
  const std::int64_t row_bytes = kernel.pixels * kernel.element_bytes();
  const std::int64_t most = kernel.activations == Activations::kBinary ? kBinaryUnitsPerBlock : 32;
  return static_cast<int>(std::clamp<std::int64_t>(kBlockBytes / (problem.codewords * row_bytes), 1, most));
}

// What a kernel's steps cost, in nanoseconds: least squares of some 200 problems on one core of an AMD Zen 4 at 3.7 GHz
// (benchmarks/NOTES.md). What decides is their proportion to each other and to the dense convolution's, which differs
// less between machines than they do.
struct Costs {
  double call;      // once per image
  double plane;     // rows, patches: a plane of a unit; patches: and of 64 pixels
  double stage;     // an input value
  double strided;   // times that, where columns are strided
  double unit;      // rows: a unit and tile; patches: none; bits: a tap, word and pixel
  double codeword;  // rows: a codeword, unit and tile
  double output;  // rows: an output, unit and tile; patches: 64 outputs, a unit and pixel; bits: 8 outputs, a tap, ...
  double open;    // rows: an output and tile, once per block of units
  double finish;  // an output value
};
constexpr Costs kFloatRows = {840, 8, 0.2, 1.5, 4.6, 0.61, 0.28, 0.56, 0.25};
constexpr Costs kBinaryRows = {860, 14, 0.2, 1.5, 0, 0.3, 0.25, 0.77, 0.25};
constexpr Costs kPatches = {640, 18, 0.15, 4, 0, 0, 0.32, 0, 0.28};
constexpr Costs kBits = {570, 0, 0.21, 1, 0.48, 0, 0.48, 0, 0.32};
constexpr Costs kCodedBits = {1000, 0, 0.15, 1, 1.2, 0, 0.85, 0, 0.29};
constexpr Costs kScalarRows = {500, 0, 1, 1, 100, 30, 16, 0, 1};

constexpr double kUnpack = 1.5;  // an input value that the rows layout is given packed

const Costs& costs_of(const Kernel& kernel) {
  switch (kernel.layout) {
    case Layout::kPatches:
      return kPatches;
    case Layout::kBits:
      return kernel.bits.code ? kCodedBits : kBits;
    case Layout::kRows:
      break;
  }
  if (kernel.level == Level::kScalar) return kScalarRows;
  return kernel.activations == Activations::kBinary ? kBinaryRows : kFloatRows;
}

// PyTorch's dense convolution, as it is from Python.
constexpr double kDenseCall = 3900;
constexpr double kDenseMac = 0.02;
constexpr double kDenseValue = 0.07;    // an input or output value
constexpr double kDenseSign = 2;        // taking the sign of an input value first
constexpr double kDenseWeight = 0.054;  // a weight: it is rearranged at every call

double number(std::int64_t n) { return static_cast<double>(n); }

double dense_cost(const Problem& p) {
  const double channels = number(p.units * unit_channels(p.unit)), outputs = number(p.outputs);
  const double weights = channels * outputs * kernel_taps(p.unit);
  const double values = channels * number(p.input_pixels) + outputs * number(p.pixels);
  double group = weights * (kDenseMac * number(p.pixels) + kDenseWeight) + kDenseValue * values;
  if (p.activations == Activations::kBinary) group += kDenseSign * channels * number(p.input_pixels);
  return kDenseCall + number(p.groups) * group;
}

double cost(const Kernel& kernel, const Problem& p) {
  const Costs& c = costs_of(kernel);
  const double units = number(p.units), channels = units * unit_channels(p.unit), pixels = number(p.pixels);
  const bool is_strided = p.pixels < p.input_pixels;
  const double planes = units * (p.unit == Unit::k8x1x1 ? 8 : is_strided ? 4 : 1);
  const double staged =
      channels * number(p.unit == Unit::k8x1x1 ? p.pixels : p.input_pixels) * (is_strided ? c.strided : 1);
  double work = c.finish * number(p.outputs) * pixels;
  switch (kernel.layout) {
    case Layout::kRows: {
      const double tiles = number(ceil_div(p.pixels, kernel.pixels));
      const double outputs = number(round_up(p.outputs, kOutputsPerStep));
      const double blocks = units / units_per_block(kernel, p);
      work += c.plane * planes + c.stage * staged;
      if (p.packed_input) work += kUnpack * channels * number(p.input_pixels);
      work += tiles * (units * (c.unit + c.codeword * p.codewords + c.output * outputs) + c.open * outputs * blocks);
      break;
    }
    case Layout::kPatches:
      work += c.plane * (planes + units * number(ceil_div(p.pixels, kChunk))) + c.stage * staged;
      work += units * pixels * c.output * number(ceil_div(p.outputs, 64));
      break;
    case Layout::kBits: {
      const double words = number(kernel_taps(p.unit) * ceil_div(p.units * unit_channels(p.unit), kWordChannels));
      work += c.stage * channels * number(p.input_pixels);
      work += words * pixels * (c.unit + c.output * number(round_up(p.outputs, kOutputsPerMatch) / 8));
      break;
    }
  }
  return c.call + number(p.groups) * work;
}

// Whether a kernel can run the problem as binary or float.
bool fits(const Kernel& kernel, const Problem& problem, Activations activations, Level level) {
  if (kernel.activations != activations || kernel.level > level) return false;
  if (tau_of(problem.codewords) > kernel.max_tau) return false;
  return kernel.layout != Layout::kBits || problem.spread <= kMaxSpreadOfBits;
}

}  // namespace

int patch_slot(int codewords) { return std::max(8, 1 << tau_of(codewords)); }

const char* Candidate::name() const {
  if (!plan.kernel) return "dense";
  switch (plan.kernel->layout) {
    case Layout::kPatches:
      return "patches";
    case Layout::kBits:
      return "bits";
    case Layout::kRows:
      break;
  }
  return "rows";
}

std::vector<Candidate> candidates(const Problem& problem, Level level) {
  const bool has_small_sums = problem.units * unit_taps(problem.unit) <= kBinaryTaps;
  const bool is_binary = problem.activations == Activations::kBinary;
  const Activations runs_as = is_binary && has_small_sums ? Activations::kBinary : Activations::kFloat;
  std::vector<Candidate> result;
  for (const Kernel& kernel : kKernels) {
    if (!fits(kernel, problem, runs_as, level)) continue;
    // Of one layout the best level comes first.
    const auto is_same = [&](const Candidate& c) { return c.plan.kernel->layout == kernel.layout; };
    if (std::any_of(result.begin(), result.end(), is_same)) continue;
    const bool binarize = is_binary && runs_as == Activations::kFloat;
    result.push_back({{&kernel, binarize, units_per_block(kernel, problem)}, cost(kernel, problem)});
  }
  result.push_back({{}, dense_cost(problem)});
  std::stable_sort(result.begin(), result.end(),
                   [](const Candidate& a, const Candidate& b) { return a.nanoseconds < b.nanoseconds; });
  return result;
}

Candidate select(const Problem& problem, Level level, const std::string& wanted) {
  const std::vector<Candidate> all = candidates(problem, level);
  const auto is_wanted = [&](const Candidate& c) {
    const std::string name = c.name();
    return name == wanted || (wanted == "sharing" && (name == "rows" || name == "patches"));
  };
  const auto found = std::find_if(all.begin(), all.end(), is_wanted);
  return found == all.end() ? all.front() : *found;
}

void (*select_pack(Level level))(const PackTask&) {
  for (const Kernel& kernel : kKernels) {
    if (kernel.level <= level) return kernel.pack;
  }
  throw std::logic_error("kernels.inc has no scalar kernel");
}

std::string wanted_plan() {
  const char* asked = std::getenv("SUBBIT_PLAN");
  const std::string name = asked ? asked : "";
  for (const char* known : {"", "auto", "sharing", "rows", "patches", "bits", "product", "sparse", "dense"}) {
    if (name == known) return name == "auto" ? "" : name;
  }
  throw std::invalid_argument(
      "SUBBIT_PLAN must be auto, sharing, rows, patches, bits, product, sparse or dense, got '" + name + "'");
}

}  // namespace subbit
