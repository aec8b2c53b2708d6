// What wgmma.cuh has, on the host. A product is recorded when it starts and made when its group is waited for, of what
// the registers and shared memory hold then: so a wait that is missing shows as wrong numbers. What numbers do not show
// throws: shared memory that is read without a fence and a barrier after its copies, or overwritten too early;
// registers changed without a fence; threads of a warpgroup that differ.
#pragma once

#include <deque>
#include <map>

#include "cuda/common/mma.cuh"
#include "cuda/common/platform.h"

namespace subbit {
namespace shim {

// Reads matrix B as the hardware does: number k of row n, of the 16 numbers that a descriptor names.
class MatrixB {
 public:
  explicit MatrixB(std::uint64_t descriptor)
      : start_(field(descriptor, 0)), stride_(field(descriptor, 32)), swizzle_(static_cast<int>(descriptor >> 62)) {
    if (swizzle_ != 1 || (descriptor >> 49 & 7) != 0) throw std::runtime_error("not the 128-byte swizzle");
  }

  std::size_t at(int n, int k) const {
    const std::size_t plain = start_ + n / 8 * stride_ + n % 8 * 128 + k * 2;
    return plain ^ (plain >> 7 & 7) << 4;
  }

 private:
  static std::size_t field(std::uint64_t descriptor, int bit) { return (descriptor >> bit & 0x3fff) << 4; }

  std::size_t start_, stride_;
  int swizzle_;
};

struct AsyncProduct {
  float (*d)[4];
  int fragments;
  const FragmentA* a;
  std::uint64_t b;
  bool adds;
  float (*to_float)(std::uint16_t);
};

// What a thread has of its warpgroup's products.
struct AsyncProducts {
  std::deque<std::vector<AsyncProduct> > groups{1};  // the last one is open
  std::size_t started = 0;
  int fences = 0;
  std::map<const FragmentA*, FragmentA> fenced;  // what registers that products have read held at the last fence
};

inline AsyncProducts& async_products() {
  static PerThread<AsyncProducts> of_threads;
  return of_threads.mine();
}

// The descriptors of every warpgroup's products, by number.
inline std::uint64_t descriptor_of_warpgroup(int warpgroup, std::size_t number, std::uint64_t mine) {
  static std::map<std::pair<int, std::size_t>, std::uint64_t> all;
  static std::size_t run = 0;
  if (run != Block::runs()) all.clear();
  run = Block::runs();
  return all.emplace(std::pair{warpgroup, number}, mine).first->second;
}

// Fragments live as long as the block: the fences look at those of earlier products.
inline void check_registers(AsyncProducts& products, const FragmentA& a) {
  const FragmentA& fenced = products.fenced.try_emplace(&a, a).first->second;
  if (products.fences == 0 || std::memcmp(fenced.r, a.r, sizeof a.r) != 0) {
    throw std::runtime_error("registers of a product have changed, and no fence came after that");
  }
}

// The places that a product reads, each once.
template <class F>
void for_pieces(const AsyncProduct& product, const F& f) {
  const MatrixB b(product.b);
  for (int n = 0; n < product.fragments * 8; ++n) {
    for (int piece = 0; piece < 2; ++piece) f(b.at(n, piece * 8));
  }
}

inline void start_product(const AsyncProduct& product) {
  Block& block = *Block::current_block();
  AsyncProducts& mine = async_products();
  check_registers(mine, *product.a);
  constexpr int kWarpgroup = 128;
  if (descriptor_of_warpgroup(block.running() / kWarpgroup, mine.started++, product.b) != product.b) {
    throw std::runtime_error("the threads of a warpgroup name different matrices");
  }
  for_pieces(product, [&](std::size_t at) { block.async().begin_read(at, block.barriers()); });
  mine.groups.back().push_back(product);
}

inline void finish_product(const AsyncProduct& product) {
  Block& block = *Block::current_block();
  const auto of_warp = block.exchange(*product.a);
  const MatrixB b(product.b);
  const int lane = block.running() % 32, g = lane / 4, t = lane % 4;
  const auto number = [&](std::uint32_t two, int e) {
    return product.to_float(static_cast<std::uint16_t>(two >> 16 * e));
  };
  float a[2][16];  // rows g and g + 8
  for (int k = 0; k < 16; ++k) {
    const FragmentA& from = of_warp[g * 4 + k % 8 / 2];
    for (int i = 0; i < 2; ++i) a[i][k] = number(from.r[k / 8 * 2 + i], k % 2);
  }
  for (int n = 0; n < product.fragments; ++n) {
    for (int j = 0; j < 2; ++j) {
      const int column = n * 8 + 2 * t + j;
      float sums[2];
      for (int i = 0; i < 2; ++i) sums[i] = product.adds ? product.d[n][2 * i + j] : 0.0f;
      for (int k = 0; k < 16; ++k) {
        std::uint16_t bits;
        std::memcpy(&bits, block.shared() + b.at(column, k), sizeof bits);
        const float x = product.to_float(bits);
        for (int i = 0; i < 2; ++i) sums[i] += a[i][k] * x;
      }
      for (int i = 0; i < 2; ++i) product.d[n][2 * i + j] = sums[i];
    }
  }
  for_pieces(product, [&](std::size_t at) { block.async().end_read(at); });
}

}  // namespace shim

inline std::uint32_t shared_address(const void* shared) {
  return static_cast<std::uint32_t>(shim::Block::current_block()->offset(shared));
}

inline void fence_for_products() {
  shim::Block& block = *shim::Block::current_block();
  block.async().fence(block.running(), block.barriers());
}

inline void fence_registers() {
  shim::AsyncProducts& products = shim::async_products();
  ++products.fences;
  for (auto& [registers, held] : products.fenced) held = *registers;
}
inline void commit_products() { shim::async_products().groups.emplace_back(); }
template <int kGroups>
void wait_for_products() {
  auto& groups = shim::async_products().groups;
  for (; groups.size() > kGroups + 1; groups.pop_front()) {
    for (const shim::AsyncProduct& product : groups.front()) shim::finish_product(product);
  }
}

template <class Registers>
void settle(Registers&) {}

template <int kFragments, class Half>
void multiply_async(float (&d)[kFragments][4], const FragmentA& a, std::uint64_t b, bool adds, Half) {
  shim::start_product({d, kFragments, &a, b, adds, [](std::uint16_t bits) { return to_float(Half{bits}); }});
}

}  // namespace subbit
