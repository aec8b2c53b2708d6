// Which way a convolution runs on a GPU: a pure function of its sizes and the device's architecture, so that a test can
// pin the answer for any device on any machine. It has no kernels in it and needs neither nvcc nor CUDA's headers: it
// is compiled into subbit_infer._C, which is there without CUDA too.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/common/params.h"

namespace subbit::cuda {

struct Problem {
  Activations activations;
  Element element;
  Unit unit;
  int codewords;
  std::int64_t units;    // of one output channel
  std::int64_t outputs;  // of one group
  std::int64_t groups;
  std::int64_t batch;
  std::int64_t pixels;        // of an output image
  std::int64_t out_width;     // its row
  std::int64_t input_pixels;  // of an input image
  bool has_zeros;             // binary activations: they may be 0
  bool is_channels_last;      // x
  bool packed_input;
  bool float_output;
  bool packed_output;
  // Nothing follows the sums but what rounding to the element does not change (nothing, relu, hardtanh): then the
  // dense convolution may write that element itself.
  bool epilogue_commutes_with_rounding;
};

struct Gpu {
  int capability;  // major * 10 + minor
  std::int64_t multiprocessors;
};

// A route of the table, or the dense convolution.
enum class Plan {
#define SUBBIT_CUDA_ROUTE(enumerator, name) enumerator,
#include "cuda/routes.inc"
  kDense
};

// The route of that name. Throws std::invalid_argument where there is none.
Plan route_plan(const std::string& name);

// A way to run a problem, and what the whole batch is expected to take.
struct Candidate {
  Plan plan;
  double microseconds;

  const char* name() const;  // the route's, or dense
};

// Every way to run the problem on the device, the quickest first: of the routes that have a kernel for it, in any
// order, and dense, which needs none.
std::vector<Candidate> candidates(const Problem& problem, const Gpu& gpu, const std::vector<Plan>& routes);

}  // namespace subbit::cuda
