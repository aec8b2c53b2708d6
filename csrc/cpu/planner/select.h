// Which kernel runs a convolution: a pure function of its sizes and the level, so that a test can pin the answer for
// any machine on any machine.
#pragma once

#include <string>
#include <vector>

#include "cpu/families/kernel.h"
#include "cpu/isa/level.h"
#include "cpu/planner/problem.h"

namespace subbit {

// A way to run a problem, and what it is expected to take for one image on one thread.
struct Candidate {
  Plan plan;
  double nanoseconds;

  const char* name() const;  // dense, or the family's
};

// Every way to run the problem at a level, the quickest first: dense, and of each family the kernel that is expected
// to be the quickest, or of equals the first in kernels.inc.
std::vector<Candidate> candidates(const Problem& problem, Level level);

// The first of them. Or what is wanted, where it can run the problem: a plan by its name ("sharing" is rows or
// patches), or a kernel by its own.
Candidate select(const Problem& problem, Level level, const std::string& wanted = {});

// The step that packs signs, of the first kernel in kernels.inc that a level runs.
void (*select_pack(Level level))(const PackTask&);

// What SUBBIT_PLAN asks for, or nothing. Throws std::invalid_argument for what is not the name of a plan.
std::string wanted_plan();

}  // namespace subbit
