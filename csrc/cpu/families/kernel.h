// A line of kernels.inc: the steps of one kernel.
#pragma once

#include <cstdint>
#include <variant>

#include "cpu/epilogue/tasks.h"
#include "cpu/families/bits/tasks.h"
#include "cpu/families/patches/tasks.h"
#include "cpu/families/rows/tasks.h"
#include "cpu/families/stage_task.h"
#include "cpu/isa/level.h"

namespace subbit {

class Family;

// What steps take, in nanoseconds: each family says what it counts (family.cpp).
struct RowsCosts;
struct PatchesCosts;
struct BitsCosts;

struct RowsSteps {
  void (*stage)(const StageTask&);
  void (*respond)(const RespondRowsTask&);
  void (*gather)(const GatherRowsTask&);
  const RowsCosts* costs;
};

struct PatchesSteps {
  bool (*stage)(const StagePatchesTask&);  // whether there are zeros; so does the next
  bool (*stage_packed)(const StagePackedTask&);
  void (*code)(const CodePatchesTask&);
  void (*look_up)(const LookUpTask&);
  const PatchesCosts* costs;
};

struct BitsSteps {                    // staged by `pack`
  void (*code)(const CodeBitsTask&);  // or null: words are matched as they are
  void (*match)(const MatchBitsTask&);
  const BitsCosts* costs;
};

struct Kernel {
  const char* name;
  Level level;  // the least that runs it
  Activations activations;
  const Family& (*family)();
  int pixels;                                              // per tile
  std::variant<RowsSteps, PatchesSteps, BitsSteps> steps;  // of its family
  void (*finish)(const FinishTask&);
  void (*pack)(const PackTask&);
};

}  // namespace subbit
