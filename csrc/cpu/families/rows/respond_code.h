// The respond step of the rows family as machine code made for one codebook.
//
// Which three sums make a codeword is known when the weight is prepared. Code that knows it too keeps all sums of a
// tile in registers and does two additions and a store per codeword, without loads, loops or branches: 18 to 20 ns per
// unit and tile at tau = 5, where the loop over RowTerms takes 38 and mispredicts (benchmarks/NOTES.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/packed.h"
#include "cpu/families/kernel.h"

namespace subbit {

class RespondCode {
 public:
  // For these codewords, whose rows are row_bytes apart. Null where code cannot be made: at level scalar, on other
  // processors, where the system forbids it, or where SUBBIT_JIT=0 asks for none.
  static std::unique_ptr<const RespondCode> make(Unit unit, const std::vector<Codeword>& codewords,
                                                 const Kernel& kernel, std::int64_t row_bytes);
  ~RespondCode();
  RespondCode(const RespondCode&) = delete;
  RespondCode& operator=(const RespondCode&) = delete;

  void operator()(const RespondRowsTask& task) const { function_(&task); }

 private:
  using Function = void (*)(const RespondRowsTask*);
  RespondCode(void* memory, std::size_t bytes);

  void* memory_;
  std::size_t bytes_;
  Function function_;
};

}  // namespace subbit
