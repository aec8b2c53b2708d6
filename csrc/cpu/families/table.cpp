#include "cpu/families/table.h"

#include <iterator>

#include "cpu/families/family.h"
#include "cpu/families/kernels.h"

namespace subbit {

namespace {

// clang-format off
constexpr Kernel kKernels[] = {
#define SUBBIT_KERNEL(NAME, LEVEL, ACTIVATIONS, FAMILY, PIXELS, ...) \
  {#NAME, Level::LEVEL, Activations::ACTIVATIONS, FAMILY, PIXELS, __VA_ARGS__, finish_##NAME, pack_##NAME},
#define SUBBIT_ROWS(NAME, LEVEL, ACTIVATIONS, PIXELS)                \
  SUBBIT_KERNEL(NAME, LEVEL, ACTIVATIONS, rows_family, PIXELS,       \
                RowsSteps{stage_##NAME, respond_##NAME, gather_##NAME, &costs_##NAME})
#define SUBBIT_PATCHES(NAME, LEVEL, ACTIVATIONS, PIXELS)             \
  SUBBIT_KERNEL(NAME, LEVEL, ACTIVATIONS, patches_family, PIXELS,    \
                PatchesSteps{stage_##NAME, stage_packed_##NAME, code_##NAME, look_up_##NAME, &costs_##NAME})
#define SUBBIT_BITS(NAME, LEVEL, ACTIVATIONS, PIXELS)                \
  SUBBIT_KERNEL(NAME, LEVEL, ACTIVATIONS, bits_family, PIXELS,       \
                BitsSteps{nullptr, match_##NAME, &costs_##NAME})
#define SUBBIT_CODED_BITS(NAME, LEVEL, ACTIVATIONS, PIXELS)          \
  SUBBIT_KERNEL(NAME, LEVEL, ACTIVATIONS, bits_family, PIXELS,       \
                BitsSteps{code_##NAME, match_##NAME, &costs_##NAME})
#include "cpu/kernels.inc"
#undef SUBBIT_CODED_BITS
#undef SUBBIT_BITS
#undef SUBBIT_PATCHES
#undef SUBBIT_ROWS
#undef SUBBIT_KERNEL
};
// clang-format on

}  // namespace

KernelTable all_kernels() { return {std::begin(kKernels), std::end(kKernels)}; }

}  // namespace subbit
