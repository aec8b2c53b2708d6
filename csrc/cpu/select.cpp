#include "cpu/select.h"

#include <algorithm>
#include <stdexcept>

#include "core/checked.h"
#include "core/packed.h"
#include "cpu/kernels.h"

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

// Whether matching bits is cheaper than looking responses up, in cycles a pixel. A unit's table costs 3 to make and
// 1.1 for each 64 outputs to look up; a word costs 1.5 for each 8 outputs (benchmarks/NOTES.md).
//
// Looking nibbles up instead costs what tables of two more bits do (to be replaced by costs of all layouts).
bool bits_pay(const Problem& problem, const Kernel& kernel) {
  constexpr int kLeastTauOfCodedBits = 7;
  if (kernel.bits.code) return tau_of(problem.codewords) >= kLeastTauOfCodedBits;
  const double tables = problem.units * (3 + 1.1 * ceil_div(problem.outputs, 64));
  const std::int64_t words = ceil_div(problem.units * unit_channels(problem.unit), 64);
  const double bits = 1.5 * kernel_taps(problem.unit) * words * ceil_div(problem.outputs, 8);
  return false && bits < tables;
}

// Bits are staged for whole images, gaps between taps included, so they are for taps close together.
constexpr std::int64_t kMaxSpreadOfBits = 4;

const Kernel& best(const Problem& problem, Activations activations, Level level) {
  for (const Kernel& kernel : kKernels) {
    if (kernel.activations != activations || kernel.level > level) continue;
    if (tau_of(problem.codewords) > kernel.max_tau) continue;
    if (kernel.layout == Layout::kBits && (problem.spread > kMaxSpreadOfBits || !bits_pay(problem, kernel))) continue;
    return kernel;
  }
  throw std::logic_error("kernels.inc has no scalar kernel for this problem");
}

}  // namespace

int patch_slot(int codewords) { return std::max(8, 1 << tau_of(codewords)); }

Plan select(const Problem& problem, Level level) {
  const bool binary =
      problem.activations == Activations::kBinary && problem.units * unit_taps(problem.unit) <= kBinaryTaps;
  Plan plan;
  plan.kernel = &best(problem, binary ? Activations::kBinary : Activations::kFloat, level);
  plan.binarize = problem.activations == Activations::kBinary && !binary;
  if (plan.kernel->layout != Layout::kRows) {
    plan.units_per_block = static_cast<int>(problem.units);
  } else {
    const int row_bytes = plan.kernel->pixels * (binary ? 1 : 4);
    const int most = binary ? kBinaryUnitsPerBlock : 32;
    plan.units_per_block = std::clamp(kBlockBytes / (problem.codewords * row_bytes), 1, most);
  }
  return plan;
}

}  // namespace subbit
