// What the planner and the driver know of a family of kernels: this interface and nothing else.
//
// A convolution's steps are written once per instruction level. All families end with the same two:
//
//   finish   activation(scale * sum + bias + residual) + shift, written to the output
//   pack     signs of floats as words of 64 channels
//
// Before these, two families compute the response of every codeword once and share it between output channels:
//
//   rows     lanes are pixels. stage copies what a strip of pixels reads into planes without gaps; respond makes rows
//            [codeword][unit][pixels of a tile]; gather loads the row that an index names and adds it.
//            Any number of codewords.
//   patches  binary activations only; lanes are output channels. stage makes planes of bits; code makes the patch that
//            a unit sees a number of nine bits. It names a row of bytes, the responses of all codewords to that patch,
//            in which look_up finds 64 output channels with a byte permutation. The rows are made with the weight:
//            there is nothing to respond. At most 64 codewords.
//
// The third shares nothing. Where there are few output channels, or many codewords, binary activations are cheaper to
// compare with the decoded bits of the weight:
//
//   bits     lanes are output channels, 64 input channels per word. match counts differing bits by XOR and population
//            count; without an instruction for that, code makes four channels a number that names a table.
#pragma once

#include <cstdint>
#include <memory>

#include "core/packed.h"
#include "core/problem.h"
#include "cpu/families/kernel.h"
#include "cpu/planner/problem.h"

namespace subbit {

struct ConvPlan;
class PlannedConv;

// A weight as the kernels of a family read it.
class WeightForm {
 public:
  virtual ~WeightForm() = default;
};

class Family {
 public:
  // As plans are called, and SUBBIT_PLAN calls them.
  virtual const char* name() const = 0;

  // ---- the planner's part

  // Whether the family can run the problem. Whether a kernel's activations and level suit it, the planner knows.
  virtual bool fits(const Problem& problem) const = 0;
  // Units whose responses are in the cache at one time.
  virtual int units_per_block(const Kernel& kernel, const Problem& problem) const = 0;
  // Expected time for one image on one thread.
  virtual double nanoseconds(const Kernel& kernel, const Problem& problem) const = 0;

  // ---- the driver's part

  // Whether packed input is read as it is; else it is unpacked to floats first.
  virtual bool reads_packed(const ConvProblem& params) const = 0;
  // Whether a strip inside one row of the image reads only its part of that row.
  virtual bool reads_parts_of_rows(const ConvProblem& params) const = 0;
  // Outputs per group as the kernels count them: whole vectors.
  virtual std::int64_t padded_outputs(std::int64_t outputs) const = 0;
  // What strip of output pixels keeps its scratch memory in the second-level cache.
  virtual std::int64_t strip_pixels(const Kernel& kernel, const Problem& problem) const = 0;

  // For the plan's kernel.
  virtual std::unique_ptr<const WeightForm> make_form(const DecodedWeight& weight, const Plan& plan,
                                                      std::int64_t groups) const = 0;
  // The form must be of the same kernel and groups, and outlive the result.
  virtual std::unique_ptr<const PlannedConv> plan(const ConvPlan& plan, const WeightForm& form) const = 0;

 protected:
  ~Family() = default;
};

const Family& rows_family();
const Family& patches_family();
const Family& bits_family();

}  // namespace subbit
