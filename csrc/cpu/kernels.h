// Declarations of the steps of every kernel in kernels.inc.
#pragma once

#include "cpu/kernel.h"

namespace subbit {

#define SUBBIT_ROWS(NAME, LEVEL, ACTIVATIONS, PIXELS) \
  void stage_3x3_##NAME(const StageTask&);            \
  void stage_8x1x1_##NAME(const StageTask&);          \
  void respond_##NAME(const RespondRowsTask&);        \
  void gather_##NAME(const GatherRowsTask&);          \
  void finish_##NAME(const FinishTask&);
#define SUBBIT_TABLES(NAME, LEVEL, ACTIVATIONS, PIXELS) \
  void stage_3x3_##NAME(const StageTask&);              \
  void stage_8x1x1_##NAME(const StageTask&);            \
  void respond_##NAME(const RespondTablesTask&);        \
  void gather_##NAME(const GatherTablesTask&);          \
  void finish_##NAME(const FinishTask&);
#define SUBBIT_BITS(NAME, LEVEL, ACTIVATIONS, PIXELS) \
  void stage_##NAME(const StageBitsTask&);            \
  void match_##NAME(const MatchBitsTask&);            \
  void finish_##NAME(const FinishTask&);
#include "cpu/kernels.inc"
#undef SUBBIT_BITS
#undef SUBBIT_ROWS
#undef SUBBIT_TABLES

}  // namespace subbit
