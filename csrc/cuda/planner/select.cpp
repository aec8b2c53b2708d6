#include "cuda/planner/select.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "core/checked.h"
#include "cuda/sharing/tile.h"
#include "cuda/sparse/box.h"

namespace subbit::cuda {
namespace {

// What a multiprocessor does per clock. NOT MEASURED: calculated from the vendor's data sheets and, for mma.sync and
// one-bit products on Hopper, from one public microbenchmark each. What decides is their proportion to each other.
// Hopper's best needs wgmma, which the product has for its large tile (product/wgmma.cuh); Blackwell's needs what it
// has not.
struct Rates {
  int capability;          // and later ones, up to the next entry
  double gigahertz;        // boost clock
  double gigabytes;        // a second, of the device's memory
  double fma;              // float32 multiply-adds outside the tensor cores
  double half_macs;        // fp16 or bf16 multiply-adds, float32 sums, at the tensor cores' best
  double half_mma_macs;    // the same by mma.sync
  double half_large_macs;  // the same in the product's large tile
  double
      sign_macs;  // multiply-adds of binary activations by mma.sync: of one bit, or where has_bit_products is not, int8
  int shared_kib;  // shared memory; a block may have all but one
};
constexpr Rates kRates[] = {
    {80, 1.41, 1555, 64, 1024, 1024, 1024, 16384, 164},    // A100: 312 TFLOP/s fp16, 4992 Top/s one bit, 40 GB card
    {86, 1.695, 600, 128, 512, 512, 512, 4096, 100},       // A10: 125 TFLOP/s fp16
    {89, 2.52, 864, 128, 512, 512, 512, 4096, 100},        // L40S: 362 TFLOP/s fp16
    {90, 1.755, 3350, 128, 2048, 1270, 2048, 17700, 228},  // H100: 4096 FLOP; mma.sync 62 % of that; 0.54 BMMA/clock
    {100, 1.755, 3350, 128, 2048, 1270, 1270, 2540, 228},  // B200: without wgmma; int8 twice fp16, 62 % assumed too
    {103, 1.755, 3350, 128, 2048, 1270, 1270, 256, 228},   // B300: as the last, but int8 150 Top/s, 148 multiprocessors
    {110, 1.755, 3350, 128, 2048, 1270, 1270, 2540, 228},  // no data sheet read: assumed to be as sm_100
    {120, 2.4, 1792, 128, 512, 512, 512, 1024, 100},       // RTX PRO 6000: 503 TFLOP/s fp16, 1007 Top/s int8
};

const Rates& rates_of(int capability) {
  const Rates* found = kRates;
  for (const Rates& rates : kRates) {
    if (rates.capability <= capability) found = &rates;
  }
  return *found;
}

// Calculated too; see above.
constexpr double kLaunch = 2.5;           // microseconds from one small kernel's start to the next one's
constexpr double kMemory = 0.8;           // of the memory's best, for a kernel that streams
constexpr double kLibrary = 0.7;          // of the best, for cuDNN where the device is full
constexpr double kOurs = 0.6;             // of the best, for the kernels of this package: the aim, not a measurement
constexpr double kSharedBytes = 128;      // per clock, from shared memory
constexpr double kResponses = 64;         // per clock: two shared row sums and a store each
constexpr double kSparseRate = 2;         // of mma.sync's: the data sheets'; by mma.sync on Hopper assumed
constexpr int kFloat32Passes = 3;         // a float32 is three bf16 parts
constexpr std::int64_t kBitsDepth = 256;  // of a one-bit mma: shorter sums are padded to it
constexpr std::int64_t kHalfDepth = 16;   // of an fp16 or bf16 one
constexpr std::int64_t kByteDepth = 64;   // a step of int8, which is of one tap

// What a block computes, and how much of the multiprocessor's best it gets.
struct Tile {
  std::int64_t pixels, outputs;
  double share;
};
constexpr Tile kLargeTile = {128, 128, 1};
constexpr Tile kHalfTile = {64, 128, 1};     // of the product, where it keeps more than one of everything
constexpr Tile kSmallTile = {16, 32, 0.25};  // each operand is read for little work

double number(std::int64_t n) { return static_cast<double>(n); }

class Model {
 public:
  Model(const Problem& problem, const Gpu& gpu) : p_(problem), gpu_(gpu), rates_(rates_of(gpu.capability)) {}

  double microseconds(Plan plan) const {
    switch (plan) {
#define SUBBIT_CUDA_ROUTE(enumerator, name) \
  case Plan::enumerator:                    \
    return name();
#include "cuda/routes.inc"
      case Plan::kDense:
        break;
    }
    return dense();
  }

  // Whether a tile of x fits a block's shared memory, which only the sparse route's may not.
  bool fits(Plan plan) const { return plan != Plan::kSparse || plan_sparse(sparse_params()).outputs != 0; }

 private:
  bool is_binary() const { return p_.activations == Activations::kBinary; }
  bool is_half() const { return p_.element != Element::kFloat32; }
  double channels() const { return number(p_.units * unit_channels(p_.unit)); }
  double inputs() const { return number(p_.batch) * number(p_.groups) * channels() * number(p_.input_pixels); }
  double outputs() const { return number(p_.batch) * number(p_.groups) * number(p_.outputs) * number(p_.pixels); }

  // Whether binary activations are multiplied as bits; else as bytes, zeros or not.
  bool has_bits() const { return has_bit_products(gpu_.capability); }

  static constexpr double kPackedBytes = 0.25;  // of a packed activation that may be 0

  double input_bytes() const { return inputs() * (p_.packed_input ? kPackedBytes : element_bytes(p_.element)); }
  double output_bytes() const {
    return outputs() * ((p_.float_output ? element_bytes(p_.element) : 0) + (p_.packed_output ? kPackedBytes : 0));
  }

  double streamed(double bytes) const { return bytes / (rates_.gigabytes * 1e3 * kMemory); }

  // What a launch of its own moves.
  double pass(double bytes) const { return kLaunch + streamed(bytes); }

  // Blocks that a kernel of such a tile has. They are dealt to the multiprocessors, so time goes in rounds.
  std::int64_t blocks(const Tile& tile) const {
    return p_.groups * ceil_div(p_.batch * p_.pixels, tile.pixels) * ceil_div(p_.outputs, tile.outputs);
  }

  double rounds(const Tile& tile, double clocks_of_block) const {
    return number(ceil_div(blocks(tile), gpu_.multiprocessors)) * clocks_of_block / (rates_.gigahertz * 1e3);
  }

  // Multiply-adds of `depth` for each result, in blocks of a tile.
  double multiply(const Tile& tile, double depth, double macs_of_clock) const {
    return rounds(tile, number(tile.pixels * tile.outputs) * depth / (macs_of_clock * tile.share));
  }

  // The product's tile: as run_product chooses it (product/run.cuh).
  const Tile& product_tile(bool keeps_more) const {
    const Tile& large = keeps_more ? kHalfTile : kLargeTile;
    return blocks(large) >= kEnoughBlocks ? large : kSmallTile;
  }

  // What the routes' planners of tiles are asked.
  CudaParams params() const {
    CudaParams params;
    params.element = p_.element;
    params.codewords = p_.codewords;
    ConvProblem& conv = params.conv;
    conv.unit = p_.unit;
    conv.activations = p_.activations;
    conv.groups = p_.groups;
    conv.batch = p_.batch;
    conv.in_channels = p_.groups * p_.units * unit_channels(p_.unit);
    conv.out_channels = p_.groups * p_.outputs;
    conv.out_height = 1;
    conv.out_width = p_.pixels;
    return params;
  }

  double sharing() const {
    const CudaParams params = this->params();
    const DeviceLimits limits{static_cast<int>(gpu_.multiprocessors), (rates_.shared_kib - 1) << 10,
                              rates_.shared_kib << 10};
    const double cycles = number(p_.units) * sharing_cycles(plan_sharing(params, limits), params, limits);
    return pass(0) + std::max(cycles / (rates_.gigahertz * 1e3 * kOurs), streamed(input_bytes() + output_bytes()));
  }

  // Signs are packed or made bytes, and floats brought into 16-bit parts, by a kernel before the product's.
  double product() const {
    const std::int64_t taps = p_.units * unit_taps(p_.unit);
    if (is_binary() && !has_bits()) {
      const double bytes = inputs();
      const double depth = number(kernel_taps(p_.unit) * round_up(p_.units * unit_channels(p_.unit), kByteDepth));
      return pass(input_bytes() + bytes) + pass(0) +
             std::max(multiply(product_tile(false), depth, rates_.sign_macs * kOurs), streamed(bytes + output_bytes()));
    }
    if (is_binary()) {
      const double packed = inputs() * kPackedBytes;
      const double depth = number(round_up(taps, kBitsDepth)) * (p_.has_zeros ? 2 : 1);
      const double before = p_.packed_input ? 0 : pass(input_bytes() + packed);
      return before + pass(0) +
             std::max(multiply(product_tile(p_.has_zeros), depth, rates_.sign_macs * kOurs),
                      streamed(packed + output_bytes()));
    }
    const double depth = number(round_up(taps, kHalfDepth)) * parts();
    const Tile& tile = product_tile(!is_half());
    const double macs = &tile == &kSmallTile ? rates_.half_mma_macs : rates_.half_large_macs;
    return arranging() + pass(0) +
           std::max(multiply(tile, depth, macs * kOurs), streamed(arranged_bytes() + output_bytes()));
  }

  // A float32 is three bf16 parts, which a kernel of its own makes, as it orders float16 that are not channels_last.
  int parts() const { return is_half() ? 1 : kFloat32Passes; }
  double arranged_bytes() const { return inputs() * 2 * parts(); }
  double arranging() const { return is_half() && p_.is_channels_last ? 0 : pass(input_bytes() + arranged_bytes()); }

  // Where a box lies is guessed, from a stride that is the same in both directions and no dilation.
  CudaParams sparse_params() const {
    constexpr double kMostStride = 4;
    CudaParams params = this->params();
    params.conv.out_width = p_.out_width;
    params.conv.out_height = ceil_div(p_.pixels, std::max<std::int64_t>(p_.out_width, 1));
    const double stride = std::sqrt(number(p_.input_pixels) / number(std::max<std::int64_t>(p_.pixels, 1)));
    params.conv.stride_h = params.conv.stride_w = std::lround(std::clamp(stride, 1.0, kMostStride));
    return params;
  }

  // Clocks per channel of a block's box, by the tensor cores and by shared memory: sparse/kernel.cuh has the
  // arithmetic.
  double sparse() const {
    constexpr double kMmaMacs = 2048, kFragmentBytes = 512, kFragmentChannels = 16, kFullWarps = 8;
    const CudaParams params = sparse_params();
    const auto [outputs, box] = plan_sparse(params);
    const double slots = sparse_slots_of(params), fragments = (box.is_paired() ? 1 : 2) * kBoxPairs / kFragmentChannels;
    const double columns = kBoxPixels * slots * parts();  // of the sparse product, per channel
    const double responses = (box.is_paired() ? slots / 4 : 2) * kBoxPairs / kFragmentChannels * parts();
    const double tensor =
        columns * number(outputs) / (rates_.half_mma_macs * kSparseRate) + responses * kMmaMacs / rates_.half_mma_macs;
    const double copies = 1 + number(outputs) / 64;  // responses are written, and read by each 64 outputs' warps
    const double shared =
        (fragments * kFragmentBytes * parts() + 2 * columns * copies + 2.0 * box.positions() * parts()) / kSharedBytes;
    const std::int64_t stage = sparse_stage_channels(sparse_parts_of(params), sparse_slots_of(params));
    const double clocks = number(round_up(p_.units, stage)) * std::max(tensor, shared) / kOurs;
    const double rounds = number(ceil_div(SparsePlan{outputs, box}.blocks(params), gpu_.multiprocessors));
    // A block goes from stage to stage by barriers; a multiprocessor is busy with eight warps of several, or of one.
    const double busy = std::min(1.0, rounds * sparse_warps(outputs) / kFullWarps);
    return arranging() + pass(0) +
           std::max(rounds * clocks / busy / (rates_.gigahertz * 1e3), streamed(arranged_bytes() + output_bytes()));
  }

  // cuDNN's convolution of the decoded weight, and what has to be done before and after it by kernels of their own
  // (subbit_infer.ops.registration).
  double dense() const {
    const bool in_float16 = is_half() && p_.epilogue_commutes_with_rounding && !is_binary();
    const bool converts = is_half() && !in_float16;
    // float16 is exact in TF32, which has half the rate of fp16.
    const double rate = in_float16 ? rates_.half_macs : converts && !is_binary() ? rates_.half_macs / 2 : rates_.fma;
    const double bytes = in_float16 ? 2 : 4;
    const double taps = number(p_.units * unit_taps(p_.unit));
    const double sums =
        std::min(multiply(kLargeTile, taps, rate * kLibrary), multiply(kSmallTile, taps, rate * kLibrary));
    double time = pass(0) + std::max(sums, streamed(bytes * (inputs() + outputs())));
    if (is_binary() || converts) time += pass(input_bytes() + bytes * inputs());
    if (is_binary()) time += pass(2 * bytes * outputs());
    if (!p_.epilogue_commutes_with_rounding) time += pass(2 * bytes * outputs());
    if (converts && p_.float_output) time += pass(bytes * outputs() + output_bytes());
    if (p_.packed_output) time += pass(outputs() * (bytes + kPackedBytes));
    return time;
  }

  const Problem& p_;
  const Gpu& gpu_;
  const Rates& rates_;
};

bool contains(const std::vector<Plan>& plans, Plan plan) {
  return std::find(plans.begin(), plans.end(), plan) != plans.end();
}

}  // namespace

const char* Candidate::name() const {
  switch (plan) {
#define SUBBIT_CUDA_ROUTE(enumerator, name) \
  case Plan::enumerator:                    \
    return #name;
#include "cuda/routes.inc"
    case Plan::kDense:
      break;
  }
  return "dense";
}

Plan route_plan(const std::string& name) {
#define SUBBIT_CUDA_ROUTE(enumerator, route) \
  if (name == #route) return Plan::enumerator;
#include "cuda/routes.inc"
  throw std::invalid_argument("there is no route '" + name + "'");
}

std::vector<Candidate> candidates(const Problem& problem, const Gpu& gpu, const std::vector<Plan>& routes) {
  const Model model(problem, gpu);
  std::vector<Candidate> result;
  const auto add = [&](Plan plan) { result.push_back({plan, model.microseconds(plan)}); };
  // In the table's order, which decides between equals.
#define SUBBIT_CUDA_ROUTE(enumerator, name) \
  if (contains(routes, Plan::enumerator) && model.fits(Plan::enumerator)) add(Plan::enumerator);
#include "cuda/routes.inc"
  add(Plan::kDense);
  std::stable_sort(result.begin(), result.end(),
                   [](const Candidate& a, const Candidate& b) { return a.microseconds < b.microseconds; });
  return result;
}

}  // namespace subbit::cuda
