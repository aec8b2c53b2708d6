// An assembler for the few x86-64 instructions that respond_code.cpp needs. Encodings: Intel 64 and IA-32 Architectures
// Software Developer's Manual, volume 2, sections 2.1.5 (ModR/M, SIB) and 2.3.5 (VEX).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

namespace subbit {

enum class Reg : std::uint8_t {
  rax = 0,
  rcx = 1,
  rdx = 2,
  rbx = 3,
  rsi = 6,
  rdi = 7,
  r8 = 8,
  r9 = 9,
  r10 = 10,
  r11 = 11
};

using Ymm = int;  // 0 to 15

// base + index * scale + displacement. Without an index, scale is 0.
struct Address {
  Reg base;
  std::int32_t displacement = 0;
  Reg index = Reg::rax;
  int scale = 0;  // 1, 2, 4 or 8
};

// A VEX instruction of 256 bits: its implied prefix (0 none, 1 66, 2 F3) and opcode, in the 0F map.
struct VexOp {
  std::uint8_t prefix, opcode;
};

class Assembler {
 public:
  const std::vector<std::uint8_t>& code() const { return code_; }
  std::int64_t here() const { return static_cast<std::int64_t>(code_.size()); }

  // target = op(first, second); where an instruction has one source only, first is 0.
  void vex(VexOp op, Ymm target, Ymm first, Ymm second) {
    prefix(op, target, first, second, 0);
    bytes({op.opcode, modrm(3, target, second)});
  }
  // The same with the second source, or the target of a store, in memory.
  void vex(VexOp op, Ymm target, Ymm first, const Address& memory) {
    prefix(op, target, first, number(memory.base), memory.scale ? number(memory.index) : 0);
    bytes({op.opcode});
    address(target, memory);
  }
  void vzeroupper() { bytes({0xc5, 0xf8, 0x77}); }

  void load(Reg target, const Address& memory) { rex_address(0x8b, target, memory); }  // mov
  void lea(Reg target, const Address& memory) { rex_address(0x8d, target, memory); }
  void add(Reg target, Reg source) {
    rex(number(source), 0, number(target));
    bytes({0x01, modrm(3, number(source), number(target))});
  }
  void add(Reg target, std::int32_t value) {
    rex(0, 0, number(target));
    bytes({0x81, modrm(3, 0, number(target))});
    word(value);
  }
  void decrement(Reg target) {
    rex(0, 0, number(target));
    bytes({0xff, modrm(3, 1, number(target))});
  }
  void jump_if_not_zero(std::int64_t target) {
    bytes({0x0f, 0x85});
    word(static_cast<std::int32_t>(target - (here() + 4)));
  }
  void push(Reg reg) { bytes({static_cast<std::uint8_t>(0x50 | number(reg))}); }  // of the first eight
  void pop(Reg reg) { bytes({static_cast<std::uint8_t>(0x58 | number(reg))}); }
  void ret() { bytes({0xc3}); }

 private:
  static int number(Reg reg) { return static_cast<int>(reg); }
  static std::uint8_t modrm(int mode, int reg, int rm) {
    return static_cast<std::uint8_t>(mode << 6 | (reg & 7) << 3 | (rm & 7));
  }
  void bytes(std::initializer_list<std::uint8_t> list) { code_.insert(code_.end(), list); }
  void word(std::int32_t value) {
    for (int shift = 0; shift < 32; shift += 8) {
      code_.push_back(static_cast<std::uint8_t>(static_cast<std::uint32_t>(value) >> shift));
    }
  }
  void rex(int reg, int index, int base) {
    bytes({static_cast<std::uint8_t>(0x48 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3)});
  }
  void rex_address(std::uint8_t opcode, Reg target, const Address& memory) {
    rex(number(target), memory.scale ? number(memory.index) : 0, number(memory.base));
    bytes({opcode});
    address(number(target), memory);
  }
  // The three-byte VEX prefix. It holds the upper bits of registers, and the first source, inverted.
  void prefix(VexOp op, int reg, int first, int base, int index) {
    const int inverted = (~reg >> 3 & 1) << 7 | (~index >> 3 & 1) << 6 | (~base >> 3 & 1) << 5;
    bytes(
        {0xc4, static_cast<std::uint8_t>(inverted | 1), static_cast<std::uint8_t>((~first & 15) << 3 | 4 | op.prefix)});
  }
  // ModR/M, SIB (always, so that every base is encoded alike) and a displacement of 8 or 32 bits.
  void address(int reg, const Address& memory) {
    const bool is_short = memory.displacement >= -128 && memory.displacement < 128;
    int scale = 0;
    while (memory.scale >> (scale + 1)) ++scale;
    const int index = memory.scale ? number(memory.index) : 4;  // 4 means none
    bytes({modrm(is_short ? 1 : 2, reg, 4), modrm(scale, index, number(memory.base))});
    if (is_short) {
      bytes({static_cast<std::uint8_t>(memory.displacement)});
    } else {
      word(memory.displacement);
    }
  }

  std::vector<std::uint8_t> code_;
};

}  // namespace subbit
