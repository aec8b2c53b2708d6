// Which kernel runs a convolution: a pure function of its sizes and the level, so that a test can pin the answer for
// any machine on any machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/families/kernel.h"
#include "cpu/isa/level.h"

namespace subbit {

struct Problem {
  Activations activations;
  Unit unit;
  int codewords;
  std::int64_t units;    // of one output channel
  std::int64_t outputs;  // of one group
  std::int64_t groups;
  std::int64_t spread;        // the largest of strides and dilations
  std::int64_t pixels;        // of an output image
  std::int64_t input_pixels;  // of an input image
  bool packed_input;
};

struct Plan {
  const Kernel* kernel = nullptr;  // null: dense, the decoded weight through torch
  bool binarize = false;           // a float kernel that takes the sign of its input
  int units_per_block = 0;         // whose responses are in the cache at one time
};

// A way to run a problem, and what it is expected to take for one image on one thread.
struct Candidate {
  Plan plan;
  double nanoseconds;

  const char* name() const;  // dense, rows, patches or bits
};

// Bytes of +-9 may be added 14 times (126). With a 16-bit sum after them, kBinaryTaps taps are the most.
constexpr int kBinaryUnitsPerBlock = 14;
static_assert(kBinaryUnitsPerBlock * unit_taps(Unit::k3x3) <= 127, "byte sums must not overflow");
constexpr std::int64_t kBinaryTaps = 32767;

// The bytes of a row of responses in the patches layout: a power of two, at least 8.
int patch_slot(int codewords);

// Every way to run the problem at a level, the quickest first.
std::vector<Candidate> candidates(const Problem& problem, Level level);

// The first of them; or the first of the given name ("sharing" is rows or patches) where there is one.
Candidate select(const Problem& problem, Level level, const std::string& wanted = {});

// The step that packs signs, of the best kernel of a level.
void (*select_pack(Level level))(const PackTask&);

// What SUBBIT_PLAN asks for, or nothing. Throws std::invalid_argument for what is no name of a plan.
std::string wanted_plan();

}  // namespace subbit
