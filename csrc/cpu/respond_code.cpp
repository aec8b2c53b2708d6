#include "cpu/respond_code.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "cpu/assembler.h"
#include "cpu/patterns.h"

namespace subbit {
namespace {

// What the two kinds of element differ in. One vector of 32 bytes is eight floats or 32 bytes.
struct Operations {
  VexOp load, store, add, subtract, exclusive_or;
};
constexpr Operations kFloats = {
    {0, 0x10}, {0, 0x29}, {0, 0x58}, {0, 0x5c}, {0, 0x57}};  // movups movaps addps subps xorps
constexpr Operations kBytes = {
    {2, 0x6f}, {1, 0x7f}, {1, 0xfc}, {1, 0xf8}, {1, 0xef}};  // movdqu movdqa paddb psubb pxor
constexpr int kVectorBytes = 32;

// The registers. At most twelve vectors hold sums.
constexpr Reg kTask = Reg::rdi, kRows = Reg::rax, kUnits = Reg::r11, kUnitStride = Reg::r10;
constexpr Reg kPart[3] = {Reg::rsi, Reg::rdx, Reg::rcx};
constexpr Reg kStride = Reg::r8, kStride3 = Reg::r9;
constexpr Reg kStride5 = Reg::rcx, kStride7 = Reg::rdi;  // 8x1x1: only two parts, and the task is read by then
constexpr Ymm kFirstTemporary = 12, kTemporaries = 3, kZero = 15;

class Writer {
 public:
  Writer(Unit unit, const Kernel& kernel, std::int64_t row_stride)
      : is_3x3_(unit == Unit::k3x3),
        op_(kernel.activations == Activations::kBinary ? kBytes : kFloats),
        row_stride_(static_cast<std::int32_t>(row_stride)),
        row_bytes_(kernel.pixels * (kernel.activations == Activations::kBinary ? 1 : 4)) {}

  std::vector<std::uint8_t> write(const std::vector<Codeword>& codewords) {
    load_arguments();
    const std::int64_t next_unit = out_.here();
    for (int at = 0; at < row_bytes_; at += kVectorBytes) {
      load_sums(at);
      for (std::size_t row = 0; row < codewords.size(); ++row) {
        respond(codewords[row], at, static_cast<std::int32_t>(row) * row_stride_ + at);
      }
    }
    for (int i = 0; i < parts(); ++i) out_.add(kPart[i], kUnitStride);
    out_.add(kRows, row_bytes_);
    out_.decrement(kUnits);
    out_.jump_if_not_zero(next_unit);
    out_.vzeroupper();
    out_.ret();
    return out_.code();
  }

 private:
  int parts() const { return is_3x3_ ? 3 : 2; }

  void load_arguments() {
    const auto field = [](std::size_t offset) { return Address{kTask, static_cast<std::int32_t>(offset)}; };
    for (int i = 0; i < parts(); ++i) {
      out_.load(kPart[i], field(offsetof(RespondRowsTask, part) + static_cast<std::size_t>(i) * sizeof(void*)));
    }
    out_.load(kStride, field(offsetof(RespondRowsTask, plane_bytes)));
    out_.load(kUnitStride, field(offsetof(RespondRowsTask, unit_bytes)));
    out_.load(kUnits, field(offsetof(RespondRowsTask, units)));
    out_.load(kRows, field(offsetof(RespondRowsTask, rows)));
    out_.lea(kStride3, {kStride, 0, kStride, 2});
    if (!is_3x3_) {
      out_.lea(kStride5, {kStride, 0, kStride, 4});
      out_.lea(kStride7, {kStride3, 0, kStride, 4});
    }
    out_.vex(op_.exclusive_or, kZero, kZero, kZero);
  }

  // Plane `pattern` of a part.
  Address plane(int part, int pattern, int at) const {
    const Address first{kPart[part], at};
    const Address strided[8] = {first,
                                {kPart[part], at, kStride, 1},
                                {kPart[part], at, kStride, 2},
                                {kPart[part], at, kStride3, 1},
                                {kPart[part], at, kStride, 4},
                                {kPart[part], at, kStride5, 1},
                                {kPart[part], at, kStride3, 2},
                                {kPart[part], at, kStride7, 1}};
    return strided[pattern];
  }

  // 3x3: all twelve sums. 8x1x1: the first half's eight; the other half's are read from memory.
  void load_sums(int at) {
    for (int i = 0; i < (is_3x3_ ? 3 : 1); ++i) {
      const int patterns = is_3x3_ ? kPatternsOfRow : kPatternsOfHalf;
      for (int q = 0; q < patterns; ++q) out_.vex(op_.load, i * patterns + q, 0, plane(i, q, at));
    }
  }

  // rows[place] = (first + second) + last, each with its sign, in this order.
  void respond(Codeword codeword, int at, std::int32_t place) {
    const Unit unit = is_3x3_ ? Unit::k3x3 : Unit::k8x1x1;
    const SignedPattern first = part_of(codeword, unit, 0), second = part_of(codeword, unit, 1);
    const Ymm sum = kFirstTemporary + temporary_++ % kTemporaries;
    bool minus = first.minus && second.minus;  // of the whole sum so far
    if (is_3x3_) {
      const Ymm a = first.pattern, b = kPatternsOfRow + second.pattern;
      if (first.minus == second.minus) {
        out_.vex(op_.add, sum, a, b);
      } else {
        out_.vex(op_.subtract, sum, first.minus ? b : a, first.minus ? a : b);
      }
      const SignedPattern last = part_of(codeword, unit, 2);
      const Ymm c = 2 * kPatternsOfRow + last.pattern;
      if (minus == last.minus) {
        out_.vex(op_.add, sum, sum, c);
      } else {
        out_.vex(op_.subtract, sum, minus ? c : sum, minus ? sum : c);
        minus = false;
      }
    } else {
      const Ymm a = first.pattern;
      const Address b = plane(1, second.pattern, at);
      if (first.minus == second.minus) {
        out_.vex(op_.add, sum, a, b);
      } else if (second.minus) {
        out_.vex(op_.subtract, sum, a, b);
      } else {
        out_.vex(op_.load, sum, 0, b);
        out_.vex(op_.subtract, sum, sum, a);
      }
    }
    if (minus) out_.vex(op_.subtract, sum, kZero, sum);
    out_.vex(op_.store, sum, 0, Address{kRows, place});
  }

  const bool is_3x3_;
  const Operations op_;
  const std::int32_t row_stride_;
  const int row_bytes_;
  Assembler out_;
  int temporary_ = 0;
};

bool is_allowed() {
  const char* asked = std::getenv("SUBBIT_JIT");
  return asked == nullptr || std::strcmp(asked, "0") != 0;
}

}  // namespace

std::unique_ptr<const RespondCode> RespondCode::make(Unit unit, const std::vector<Codeword>& codewords,
                                                     const Kernel& kernel, std::int64_t row_stride) {
#if SUBBIT_X86
  if (kernel.level == Level::kScalar || !is_allowed()) return nullptr;
  const std::vector<std::uint8_t> code = Writer(unit, kernel, row_stride).write(codewords);
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
  static_cast<void>(unit), static_cast<void>(codewords), static_cast<void>(kernel), static_cast<void>(row_stride);
  return nullptr;
#endif
}

RespondCode::RespondCode(void* memory, std::size_t bytes)
    : memory_(memory), bytes_(bytes), function_(reinterpret_cast<Function>(memory)) {}

RespondCode::~RespondCode() { munmap(memory_, bytes_); }

}  // namespace subbit
