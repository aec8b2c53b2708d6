// A decoded weight together with the forms that kernels read, each made once, when first asked for.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "core/packed.h"
#include "cpu/driver/aligned.h"
#include "cpu/families/patches/patch_map.h"
#include "cpu/families/rows/respond_code.h"
#include "cpu/planner/select.h"

namespace subbit {

// The rows layout's form: an offset is the row of a unit's codeword in a block of responses.
struct RowsForm {
  std::unique_ptr<const RespondCode> respond;  // or null: the kernel's own step reads terms
  std::vector<RowTerms> terms;                 // of each codeword
  std::vector<std::uint16_t> offsets;          // [group][block][outputs / kOutputsPerStep][units][kOutputsPerStep]
};

// The patches layout's form.
struct PatchesForm {
  int slot = 0;
  AlignedBuffer responses;  // [place of PatchMap][number of a patch][slot]
  AlignedBuffer positions;  // [group][outputs / 64][unit][64]
};

// The bits layout's form: the decoded weight.
struct BitsForm {
  int words = 0;   // of 64 input channels
  int halves = 0;  // of words, that have channels
  std::int64_t group_bytes = 0;
  AlignedBuffer weights;  // of each group, in either of the orders that MatchBitsTask names
};

class Weight {
 public:
  explicit Weight(DecodedWeight decoded) : decoded_(std::move(decoded)) {}

  const DecodedWeight& decoded() const { return decoded_; }

  // Safe to call from any number of threads. The reference stays valid as long as the weight.
  const RowsForm& rows_form(const Plan& plan, std::int64_t groups) const;
  const PatchesForm& patches_form(const Plan& plan, std::int64_t groups) const;
  const BitsForm& bits_form(const Plan& plan, std::int64_t groups) const;
  // Of the last few sizes that the weight was used with.
  std::shared_ptr<const PatchMap> patch_map(const ConvProblem& params, int code_unit) const;

 private:
  using Key = std::pair<const Kernel*, std::int64_t>;
  template <class Form>
  using Forms = std::map<Key, std::unique_ptr<const Form>>;

  DecodedWeight decoded_;
  mutable Forms<RowsForm> rows_;
  mutable Forms<PatchesForm> patches_;
  mutable Forms<BitsForm> bits_;
  mutable std::map<PatchMapKey, std::shared_ptr<const PatchMap>> patch_maps_;
};

// Outputs of one group as the forms count them: whole steps of the gather.
std::int64_t padded_outputs(const Kernel& kernel, std::int64_t outputs);

}  // namespace subbit
