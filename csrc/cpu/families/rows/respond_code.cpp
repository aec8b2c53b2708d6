#include "cpu/families/rows/respond_code.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <tuple>

#include "cpu/families/rows/assembler.h"
#include "cpu/families/rows/patterns.h"

namespace subbit {
namespace {

// What the two kinds of element differ in. One vector of 32 bytes is eight floats or 32 bytes.
struct Operations {
  VexOp load, store, add, subtract, bit_and, exclusive_or;
};
// movups movaps addps subps andps xorps, and movdqu movdqa paddb psubb pand pxor
constexpr Operations kFloats = {{0, 0x10}, {0, 0x29}, {0, 0x58}, {0, 0x5c}, {0, 0x54}, {0, 0x57}};
constexpr Operations kBytes = {{2, 0x6f}, {1, 0x7f}, {1, 0xfc}, {1, 0xf8}, {1, 0xdb}, {1, 0xef}};
constexpr int kVectorBytes = 32;

// General registers. Of 8x1x1 units all eight channels are reached from one address by multiples of a stride.
constexpr Reg kTask = Reg::rdi, kResponses = Reg::rax, kUnits = Reg::r11, kUnitBytes = Reg::r10;
constexpr Reg kRow[3] = {Reg::rsi, Reg::rdx, Reg::rcx};
constexpr Reg kFirstTap = Reg::r8, kLastTap = Reg::r9, kFirstMask = Reg::rbx, kLastMask = Reg::rdi;
constexpr Reg kChannels = Reg::rsi, kStride = Reg::r8, kStride3 = Reg::r9, kStride5 = Reg::rcx, kStride7 = Reg::rdi;
constexpr Reg kScratch = Reg::rdx;

// Vector registers. 3x3: the signless sums of the three rows, and room to work. 8x1x1: those of one half; the other's
// are in scratch memory.
constexpr Ymm kWork = 12, kWorkEnd = 15, kZero = 15;

class Writer {
 public:
  Writer(Unit unit, const Kernel& kernel, std::int64_t row_bytes)
      : unit_(unit),
        op_(kernel.activations == Activations::kBinary ? kBytes : kFloats),
        row_bytes_(static_cast<std::int32_t>(row_bytes)),
        tile_bytes_(static_cast<int>(kernel.pixels * (kernel.activations == Activations::kBinary ? 1 : 4))) {}

  std::vector<std::uint8_t> write(const std::vector<Codeword>& codewords) {
    out_.push(kFirstMask);
    load_arguments();
    const std::int64_t next_unit = out_.here();
    for (int at = 0; at < tile_bytes_; at += kVectorBytes) {
      if (unit_ == Unit::k3x3) {
        sums_of_rows(at);
      } else {
        sums_of_halves(at);
      }
      out_.vex(op_.exclusive_or, kZero, kZero, kZero);
      respond(codewords, at);
    }
    for (int i = 0; i < (unit_ == Unit::k3x3 ? 3 : 1); ++i) out_.add(kRow[i], kUnitBytes);
    out_.add(kResponses, tile_bytes_);
    out_.decrement(kUnits);
    out_.jump_if_not_zero(next_unit);
    out_.vzeroupper();
    out_.pop(kFirstMask);
    out_.ret();
    return out_.code();
  }

 private:
  void load_arguments() {
    const auto load = [&](Reg target, std::size_t offset) {
      out_.load(target, {kTask, static_cast<std::int32_t>(offset)});
    };
    load(kUnitBytes, offsetof(RespondRowsTask, unit_bytes));
    load(kUnits, offsetof(RespondRowsTask, units));
    load(kResponses, offsetof(RespondRowsTask, rows));
    if (unit_ == Unit::k3x3) {
      for (std::size_t r = 0; r < 3; ++r) load(kRow[r], offsetof(RespondRowsTask, row) + r * sizeof(void*));
      load(kFirstTap, offsetof(RespondRowsTask, first_tap));
      load(kLastTap, offsetof(RespondRowsTask, last_tap));
      load(kFirstMask, offsetof(RespondRowsTask, first_mask));
      load(kLastMask, offsetof(RespondRowsTask, last_mask));  // the last one: it takes the task's register
    } else {
      load(kScratch, offsetof(RespondRowsTask, scratch));
      load(kChannels, offsetof(RespondRowsTask, channels));
      load(kStride, offsetof(RespondRowsTask, channel_bytes));
      out_.lea(kStride3, {kStride, 0, kStride, 2});
      out_.lea(kStride5, {kStride, 0, kStride, 4});
      out_.lea(kStride7, {kStride3, 0, kStride, 4});
    }
  }

  void add(Ymm target, Ymm a, Ymm b) { out_.vex(op_.add, target, a, b); }
  void subtract(Ymm target, Ymm a, Ymm b) { out_.vex(op_.subtract, target, a, b); }

  // Registers 4 * row + pattern = (x0 +- x1) +- x2, for all three rows.
  void sums_of_rows(int at) {
    constexpr Ymm x0 = kWork, x1 = kWork + 1, x2 = kWork + 2;
    for (int r = 0; r < 3; ++r) {
      out_.vex(op_.load, x0, 0, Address{kRow[r], at, kFirstTap, 1});
      out_.vex(op_.bit_and, x0, x0, Address{kFirstMask, at});
      out_.vex(op_.load, x1, 0, Address{kRow[r], at});
      out_.vex(op_.load, x2, 0, Address{kRow[r], at, kLastTap, 1});
      out_.vex(op_.bit_and, x2, x2, Address{kLastMask, at});
      const Ymm sum = kPatternsOfRow * r;
      add(sum, x0, x1);
      subtract(x0, x0, x1);
      subtract(sum + 1, sum, x2);
      add(sum, sum, x2);
      add(sum + 2, x0, x2);
      subtract(sum + 3, x0, x2);
    }
  }

  // Registers 0 to 7, and scratch memory for the last half: (x0 +- x1) +- (x2 +- x3).
  void sums_of_halves(int at) {
    const Address channel[8] = {{kChannels, at},
                                {kChannels, at, kStride, 1},
                                {kChannels, at, kStride, 2},
                                {kChannels, at, kStride3, 1},
                                {kChannels, at, kStride, 4},
                                {kChannels, at, kStride5, 1},
                                {kChannels, at, kStride3, 2},
                                {kChannels, at, kStride7, 1}};
    for (int half = 1; half >= 0; --half) {
      constexpr Ymm x = 8;
      for (int c = 0; c < 4; ++c) out_.vex(op_.load, x + c, 0, channel[4 * half + c]);
      constexpr Ymm pair = 12, plus = 14, minus = 15;
      add(pair, x, x + 1);
      subtract(pair + 1, x, x + 1);
      add(plus, x + 2, x + 3);
      subtract(minus, x + 2, x + 3);
      for (int minus1 = 0; minus1 < 2; ++minus1) {
        const Ymm sum = 4 * minus1;
        add(sum, pair + minus1, plus);
        add(sum + 1, pair + minus1, minus);
        subtract(sum + 2, pair + minus1, minus);
        subtract(sum + 3, pair + minus1, plus);
      }
      for (int q = 0; half == 1 && q < kPatternsOfHalf; ++q) {
        out_.vex(op_.store, q, 0, Address{kScratch, q * kVectorBytes});
      }
    }
  }

  // Codewords that share their first two rows, up to a sign, follow each other and share their sum.
  void respond(const std::vector<Codeword>& codewords, int at) {
    std::vector<std::size_t> order(codewords.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    const auto pair_of = [&](std::size_t k) {
      const SignedPattern first = part_of(codewords[k], unit_, 0), second = part_of(codewords[k], unit_, 1);
      return std::tuple(first.pattern, second.pattern, first.minus != second.minus);
    };
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return pair_of(a) < pair_of(b); });
    for (std::size_t i = 0; i < order.size(); ++i) {
      const Address place{kResponses, static_cast<std::int32_t>(order[i]) * row_bytes_ + at};
      if (unit_ == Unit::k3x3) {
        const bool is_new = i == 0 || pair_of(order[i]) != pair_of(order[i - 1]);
        respond_3x3(codewords[order[i]], is_new, place);
      } else {
        respond_8x1x1(codewords[order[i]], place);
      }
    }
  }

  Ymm next_work() {
    work_ = work_ + 1 < kWorkEnd ? work_ + 1 : kWork + 1;
    return work_;
  }

  // (first row + second row) + last row, each with its sign, rounded in this order.
  void respond_3x3(Codeword codeword, bool is_new_pair, const Address& place) {
    const SignedPattern first = part_of(codeword, unit_, 0), second = part_of(codeword, unit_, 1);
    const SignedPattern last = part_of(codeword, unit_, 2);
    constexpr Ymm pair = kWork;  // with the first row positive
    if (is_new_pair) {
      out_.vex(first.minus == second.minus ? op_.add : op_.subtract, pair, first.pattern,
               kPatternsOfRow + second.pattern);
    }
    const Ymm sum = next_work(), c = 2 * kPatternsOfRow + last.pattern;
    if (first.minus == last.minus) {
      add(sum, pair, c);
      if (first.minus) subtract(sum, kZero, sum);
    } else if (first.minus) {
      subtract(sum, c, pair);
    } else {
      subtract(sum, pair, c);
    }
    out_.vex(op_.store, sum, 0, place);
  }

  void respond_8x1x1(Codeword codeword, const Address& place) {
    const SignedPattern first = part_of(codeword, unit_, 0), last = part_of(codeword, unit_, 1);
    const Ymm sum = next_work(), a = first.pattern;
    const Address b{kScratch, last.pattern * kVectorBytes};
    if (first.minus == last.minus) {
      out_.vex(op_.add, sum, a, b);
      if (first.minus) subtract(sum, kZero, sum);
    } else if (last.minus) {
      out_.vex(op_.subtract, sum, a, b);
    } else {
      out_.vex(op_.load, sum, 0, b);
      subtract(sum, sum, a);
    }
    out_.vex(op_.store, sum, 0, place);
  }

  const Unit unit_;
  const Operations op_;
  const std::int32_t row_bytes_;
  const int tile_bytes_;
  Assembler out_;
  Ymm work_ = kWork;
};

bool is_allowed() {
  const char* asked = std::getenv("SUBBIT_JIT");
  return asked == nullptr || std::strcmp(asked, "0") != 0;
}

}  // namespace

std::unique_ptr<const RespondCode> RespondCode::make(Unit unit, const std::vector<Codeword>& codewords,
                                                     const Kernel& kernel, std::int64_t row_bytes) {
#if SUBBIT_X86
  if (!runs_on(Level::kAvx2, kernel.level) || !is_allowed()) return nullptr;  // it is code for AVX2
  const std::vector<std::uint8_t> code = Writer(unit, kernel, row_bytes).write(codewords);
  // Written first and made executable then: never both at once, which hardened systems refuse.
  void* memory = mmap(nullptr, code.size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  std::memcpy(memory, code.data(), code.size());
  if (mprotect(memory, code.size(), PROT_READ | PROT_EXEC) != 0) {
    munmap(memory, code.size());
    return nullptr;
  }
  return std::unique_ptr<const RespondCode>(new RespondCode(memory, code.size()));
#else
  static_cast<void>(unit), static_cast<void>(codewords), static_cast<void>(kernel), static_cast<void>(row_bytes);
  return nullptr;
#endif
}

RespondCode::RespondCode(void* memory, std::size_t bytes)
    : memory_(memory), bytes_(bytes), function_(reinterpret_cast<Function>(memory)) {}

RespondCode::~RespondCode() { munmap(memory_, bytes_); }

}  // namespace subbit
