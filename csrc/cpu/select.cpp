#include "cpu/select.h"

#include <algorithm>
#include <stdexcept>

#include "core/packed.h"
#include "cpu/kernels.h"

namespace subbit {
namespace {

constexpr int kMaxTauOfTables = 6;  // 64 codewords fill a 512-bit register

constexpr Kernel kKernels[] = {
#define SUBBIT_ROWS(NAME, LEVEL, ACTIVATIONS, PIXELS) \
  {#NAME,                                             \
   Level::LEVEL,                                      \
   Activations::ACTIVATIONS,                          \
   Layout::kRows,                                     \
   PIXELS,                                            \
   kMaxTau,                                           \
   stage_3x3_##NAME,                                  \
   stage_8x1x1_##NAME,                                \
   respond_##NAME,                                    \
   gather_##NAME,                                     \
   nullptr,                                           \
   nullptr,                                           \
   finish_##NAME},
#define SUBBIT_TABLES(NAME, LEVEL, ACTIVATIONS, PIXELS)                         \
  {#NAME,        Level::LEVEL,    Activations::ACTIVATIONS, Layout::kTables,    \
   PIXELS,       kMaxTauOfTables, stage_3x3_##NAME,         stage_8x1x1_##NAME, \
   nullptr,      nullptr,         respond_##NAME,           gather_##NAME,      \
   finish_##NAME},
#include "cpu/kernels.inc"
#undef SUBBIT_ROWS
#undef SUBBIT_TABLES
};

const Kernel& best(Activations activations, int tau, Level level) {
  for (const Kernel& kernel : kKernels) {
    if (kernel.activations == activations && kernel.level <= level && tau <= kernel.max_tau) return kernel;
  }
  throw std::logic_error("kernels.inc has no scalar kernel for this problem");
}

// Whole groups of byte sums (14 units, or as many as fill registers), while eight pixels' tables stay in L1.
int units_per_table_block(int slot) {
  switch (slot) {
    case 64:
      return 14;
    case 32:
      return 28;
    case 16:
      return 48;
    default:
      return 64;
  }
}

}  // namespace

int table_slot(int codewords) { return std::max(8, 1 << tau_of(codewords)); }

Plan select(const Problem& problem, Level level) {
  const int tau = tau_of(problem.codewords);
  const bool binary =
      problem.activations == Activations::kBinary && problem.units * unit_taps(problem.unit) <= kBinaryTaps;
  Plan plan;
  plan.kernel = &best(binary ? Activations::kBinary : Activations::kFloat, tau, level);
  plan.binarize = problem.activations == Activations::kBinary && !binary;
  if (plan.kernel->layout == Layout::kTables) {
    plan.units_per_block = units_per_table_block(table_slot(problem.codewords));
  } else {
    const int row_bytes = plan.kernel->pixels * (binary ? 1 : 4);
    const int most = binary ? kBinaryUnitsPerBlock : 32;
    plan.units_per_block = std::clamp(kBlockBytes / (problem.codewords * row_bytes), 1, most);
  }
  return plan;
}

}  // namespace subbit
