#include "cpu/planner/select.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "cpu/families/family.h"
#include "cpu/families/table.h"

namespace subbit {
namespace {

// Families of binary activations have sums of 16 bits.
constexpr std::int64_t kBinaryTaps = 32767;

// PyTorch's dense convolution, as it is from Python, in nanoseconds.
constexpr double kDenseCall = 3900;
constexpr double kDenseMac = 0.02;
constexpr double kDenseValue = 0.07;    // per input or output value
constexpr double kDenseSign = 2;        // per input value whose sign is taken first
constexpr double kDenseWeight = 0.054;  // per weight: it is rearranged at every call

double number(std::int64_t n) { return static_cast<double>(n); }

double dense_nanoseconds(const Problem& p) {
  const double channels = number(p.channels()), outputs = number(p.outputs);
  const double weights = channels * outputs * kernel_taps(p.unit);
  const double values = channels * number(p.input_pixels) + outputs * number(p.pixels);
  double group = weights * (kDenseMac * number(p.pixels) + kDenseWeight) + kDenseValue * values;
  if (p.activations == Activations::kBinary) group += kDenseSign * channels * number(p.input_pixels);
  return kDenseCall + number(p.groups) * group;
}

// Every kernel that can run the problem, and the dense convolution, the quickest first.
std::vector<Candidate> usable(const Problem& problem, Level level) {
  const bool has_small_sums = problem.units * unit_taps(problem.unit) <= kBinaryTaps;
  const bool is_binary = problem.activations == Activations::kBinary;
  const Activations runs_as = is_binary && has_small_sums ? Activations::kBinary : Activations::kFloat;
  std::vector<Candidate> result;
  for (const Kernel& kernel : all_kernels()) {
    const Family& family = kernel.family();
    if (kernel.activations != runs_as || !runs_on(kernel.level, level) || !family.fits(problem)) continue;
    const bool binarize = is_binary && runs_as == Activations::kFloat;
    result.push_back(
        {{&kernel, binarize, family.units_per_block(kernel, problem)}, family.nanoseconds(kernel, problem)});
  }
  result.push_back({{}, dense_nanoseconds(problem)});
  std::stable_sort(result.begin(), result.end(),
                   [](const Candidate& a, const Candidate& b) { return a.nanoseconds < b.nanoseconds; });
  return result;
}

}  // namespace

const char* Candidate::name() const { return plan.kernel ? plan.kernel->family().name() : "dense"; }

std::vector<Candidate> candidates(const Problem& problem, Level level) {
  std::vector<Candidate> result;
  for (const Candidate& candidate : usable(problem, level)) {
    const auto is_same = [&](const Candidate& c) { return std::string(c.name()) == candidate.name(); };
    if (std::none_of(result.begin(), result.end(), is_same)) result.push_back(candidate);
  }
  return result;
}

Candidate select(const Problem& problem, Level level, const std::string& wanted) {
  const std::vector<Candidate> all = usable(problem, level);
  const auto is_wanted = [&](const Candidate& c) {
    const std::string name = c.name();
    return name == wanted || (wanted == "sharing" && (name == "rows" || name == "patches")) ||
           (c.plan.kernel && c.plan.kernel->name == wanted);
  };
  const auto found = std::find_if(all.begin(), all.end(), is_wanted);
  return found == all.end() ? all.front() : *found;
}

void (*select_pack(Level level))(const PackTask&) {
  for (const Kernel& kernel : all_kernels()) {
    if (runs_on(kernel.level, level)) return kernel.pack;
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
