// Declarations of the steps of every kernel in kernels.inc. ISA files include this, so it includes nothing of the
// standard library but <cstdint>.
#pragma once

#include "cpu/epilogue/tasks.h"
#include "cpu/families/bits/tasks.h"
#include "cpu/families/patches/tasks.h"
#include "cpu/families/rows/tasks.h"
#include "cpu/families/stage_task.h"

namespace subbit {

#define SUBBIT_ROWS(NAME, LEVEL, ACTIVATIONS, PIXELS) \
  void stage_##NAME(const StageTask&);                \
  void respond_##NAME(const RespondRowsTask&);        \
  void gather_##NAME(const GatherRowsTask&);          \
  void finish_##NAME(const FinishTask&);              \
  void pack_##NAME(const PackTask&);
#define SUBBIT_PATCHES(NAME, LEVEL, ACTIVATIONS, PIXELS) \
  bool stage_##NAME(const StagePatchesTask&);            \
  bool stage_packed_##NAME(const StagePackedTask&);      \
  void code_##NAME(const CodePatchesTask&);              \
  void look_up_##NAME(const LookUpTask&);                \
  void finish_##NAME(const FinishTask&);                 \
  void pack_##NAME(const PackTask&);
#define SUBBIT_BITS(NAME, LEVEL, ACTIVATIONS, PIXELS) \
  void match_##NAME(const MatchBitsTask&);            \
  void finish_##NAME(const FinishTask&);              \
  void pack_##NAME(const PackTask&);
#define SUBBIT_CODED_BITS(NAME, LEVEL, ACTIVATIONS, PIXELS) \
  void code_##NAME(const CodeBitsTask&);                    \
  SUBBIT_BITS(NAME, LEVEL, ACTIVATIONS, PIXELS)
#include "cpu/kernels.inc"
#undef SUBBIT_CODED_BITS
#undef SUBBIT_BITS
#undef SUBBIT_ROWS
#undef SUBBIT_PATCHES

}  // namespace subbit
