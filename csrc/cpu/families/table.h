// Every kernel of kernels.inc, in its order.
#pragma once

#include "cpu/families/kernel.h"

namespace subbit {

// Defined with each family.
#define SUBBIT_ROWS(NAME, LEVEL, ACTIVATIONS, PIXELS) extern const RowsCosts costs_##NAME;
#define SUBBIT_PATCHES(NAME, LEVEL, ACTIVATIONS, PIXELS) extern const PatchesCosts costs_##NAME;
#define SUBBIT_BITS(NAME, LEVEL, ACTIVATIONS, PIXELS) extern const BitsCosts costs_##NAME;
#define SUBBIT_CODED_BITS SUBBIT_BITS
#include "cpu/kernels.inc"
#undef SUBBIT_CODED_BITS
#undef SUBBIT_BITS
#undef SUBBIT_PATCHES
#undef SUBBIT_ROWS

struct KernelTable {
  const Kernel* first;
  const Kernel* last;

  const Kernel* begin() const { return first; }
  const Kernel* end() const { return last; }
};

KernelTable all_kernels();

}  // namespace subbit
