// The host shim: CUDA's words for kernel bodies, in plain C++, so that tests run the bodies on the CPU.
//
// A block's threads are fibers of one OS thread. Each runs until it waits at a barrier; between two barriers they run
// one after the other in an order drawn anew each time. So a missing barrier shows as a wrong result (one thread reads
// what another has not written yet, or overwrites what another still needs), the same way in every run. Shared memory
// starts out as garbage, different for each block, and ends where the launch says.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

struct ShimIndex {
  unsigned x, y, z;
};
inline ShimIndex threadIdx, blockIdx, blockDim, gridDim;

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
struct alignas(16) int4 {
  int x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace subbit::shim {

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// What asynchronous copies and products do with shared memory, in pieces of 16 bytes: who wrote them last, whether that
// is fenced for products and since which barrier, and which products in flight read them.
class AsyncShared {
 public:
  AsyncShared() = default;
  AsyncShared(std::size_t bytes, std::size_t threads) : pieces_((bytes + kBytes - 1) / kBytes), unfenced_(threads) {}

  // From its start on, a copy may write; when it has been waited for, it has.
  void begin_write(std::size_t at) {
    Piece& piece = pieces_.at(at / kBytes);
    if (piece.readers > 0) throw std::runtime_error("a copy overwrites what a product still reads");
    piece.fenced_at = kNotFenced;
  }
  void end_write(std::size_t at, int thread) { unfenced_.at(thread).push_back(at / kBytes); }

  // What the thread wrote is there for products once the block has passed a barrier that it has not passed yet.
  void fence(int thread, int barriers) {
    for (std::size_t i : unfenced_.at(thread)) pieces_[i].fenced_at = barriers;
    unfenced_[thread].clear();
  }

  void begin_read(std::size_t at, int barriers) {
    Piece& piece = pieces_.at(at / kBytes);
    if (piece.fenced_at == kNotFenced) throw std::runtime_error("a product reads what is not fenced, or not written");
    if (piece.fenced_at >= barriers) throw std::runtime_error("a product reads what is fenced, but by no barrier");
    ++piece.readers;
  }
  void end_read(std::size_t at) { --pieces_.at(at / kBytes).readers; }

 private:
  static constexpr std::size_t kBytes = 16;
  static constexpr int kNotFenced = -1;
  struct Piece {
    int fenced_at = kNotFenced, readers = 0;
  };
  std::vector<Piece> pieces_;
  std::vector<std::vector<std::size_t>> unfenced_;  // of each thread
};

class Block {
 public:
  static constexpr int kWarp = 32;
  static constexpr std::size_t kStackBytes = 128 << 10;

  Block(int threads, std::size_t shared_bytes) : fibers_(threads), shared_bytes_(shared_bytes) {
    for (Fiber& fiber : fibers_) fiber.stack.reset(new char[kStackBytes]);  // not zeroed: most is never used
  }

  // Runs the body once for every thread of block `blockIdx`. Throws std::runtime_error where not all threads of a
  // warp or the block reach a barrier, and what a thread throws.
  void run(const std::function<void()>& body, unsigned seed) {
    random_.seed(seed);
    thrown_ = nullptr;
    barriers_ = 0;
    ++runs();
    async_ = AsyncShared(shared_bytes_, fibers_.size());
    shared_.reset(static_cast<unsigned char*>(::operator new(shared_bytes_, kAlignment)));
    for (std::size_t i = 0; i < shared_bytes_; ++i) shared_[i] = static_cast<unsigned char>(random_() | 0x80);
    body_ = &body;
    current_block() = this;
    for (Fiber& fiber : fibers_) start(fiber);
    while (step()) {
    }
    current_block() = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    for (Fiber& fiber : fibers_) ASAN_UNPOISON_MEMORY_REGION(fiber.stack.get(), kStackBytes);
#endif
  }

  unsigned char* shared() { return shared_.get(); }
  std::size_t offset(const void* in_shared) const {
    return static_cast<const unsigned char*>(in_shared) - shared_.get();
  }
  AsyncShared& async() { return async_; }
  int barriers() const { return barriers_; }  // that the whole block has passed
  int threads() const { return static_cast<int>(fibers_.size()); }
  int running() const { return running_; }
  void wait_for_block() { wait(State::kAtBlock); }
  void wait_for_warp() { wait(State::kAtWarp); }

  // What every lane of the warp gives: lane i's in place i. All lanes call it.
  template <class T>
  std::array<T, kWarp> exchange(const T& mine) {
    static_assert(sizeof(T) <= sizeof(Slots::value_type));
    const int thread = running_;
    auto& slots = slots_[fibers_[thread].exchanges++ % 2];
    slots.resize(fibers_.size());
    std::memcpy(slots[thread].data(), &mine, sizeof(T));
    wait_for_warp();
    std::array<T, kWarp> all{};
    for (int lane = 0; lane < kWarp; ++lane) {
      const std::size_t from = thread / kWarp * kWarp + lane;
      if (from < slots.size()) std::memcpy(&all[lane], slots[from].data(), sizeof(T));
    }
    return all;
  }

  static Block*& current_block() {
    static Block* block = nullptr;
    return block;
  }

  // Blocks that ran, this one counted.
  static std::size_t& runs() {
    static std::size_t count = 0;
    return count;
  }

 private:
  enum class State { kReady, kAtBlock, kAtWarp, kDone };
  using Slots = std::vector<std::array<unsigned char, 64>>;
  static constexpr std::align_val_t kAlignment{1024};
  struct Free {
    void operator()(unsigned char* memory) const { ::operator delete(memory, kAlignment); }
  };
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    State state = State::kReady;
    unsigned exchanges = 0;
    void* fake_stack = nullptr;
  };

  void start(Fiber& fiber) {
    fiber.state = State::kReady;
    fiber.exchanges = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Block::enter, 0);
  }

  static void enter() {
    Block* block = current_block();
    block->arrived(nullptr);
    try {
      (*block->body_)();
    } catch (...) {  // it cannot pass from one stack to another by itself
      block->thrown_ = std::current_exception();
    }
    block->wait(State::kDone);
  }

  void resume(int thread) {
    running_ = thread;
    threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack_, fibers_[thread].stack.get(), kStackBytes);
#endif
    swapcontext(&scheduler_, &fibers_[thread].context);
    finish_switch(fake_stack_);
  }

  void wait(State state) {
    Fiber& fiber = fibers_[running_];
    fiber.state = state;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(state == State::kDone ? nullptr : &fiber.fake_stack, scheduler_stack_,
                                   scheduler_stack_bytes_);
#endif
    swapcontext(&fiber.context, &scheduler_);
    arrived(fiber.fake_stack);
  }

  void finish_switch([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  // A fiber goes on: where it came from is the scheduler.
  void arrived([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  // Runs every thread that can run, in a random order, then opens the barriers that all have reached. False at the end.
  bool step() {
    std::vector<int> order;
    for (int i = 0; i < static_cast<int>(fibers_.size()); ++i) {
      if (fibers_[i].state == State::kReady) order.push_back(i);
    }
    std::shuffle(order.begin(), order.end(), random_);
    for (int thread : order) {
      resume(thread);
      if (thrown_) {
        current_block() = nullptr;
        std::rethrow_exception(thrown_);
      }
    }
    const auto all = [&](std::size_t begin, std::size_t end, State state) {
      for (std::size_t i = begin; i < end; ++i) {
        if (fibers_[i].state != state) return false;
      }
      return true;
    };
    const auto release = [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) fibers_[i].state = State::kReady;
    };
    const std::size_t count = fibers_.size();
    if (all(0, count, State::kDone)) return false;
    if (all(0, count, State::kAtBlock)) {
      ++barriers_;
      release(0, count);
      return true;
    }
    bool any = false;
    for (std::size_t begin = 0; begin < count; begin += kWarp) {
      const std::size_t end = std::min(count, begin + kWarp);
      if (!all(begin, end, State::kAtWarp)) continue;
      release(begin, end);
      any = true;
    }
    if (!any) throw std::runtime_error("not all threads reach the barrier");
    return true;
  }

  std::vector<Fiber> fibers_;
  std::size_t shared_bytes_;
  std::unique_ptr<unsigned char[], Free> shared_;
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr thrown_;
  AsyncShared async_;
  int barriers_ = 0;
  std::mt19937 random_;
  ucontext_t scheduler_;
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_stack_bytes_ = 0;
  void* fake_stack_ = nullptr;
  int running_ = 0;
  Slots slots_[2];
};

// What every thread of a block has for itself, made anew for each block.
template <class T>
class PerThread {
 public:
  T& mine() {
    if (run_ != Block::runs()) all_ = std::vector<T>(Block::current_block()->threads());
    run_ = Block::runs();
    return all_[Block::current_block()->running()];
  }

 private:
  std::vector<T> all_;
  std::size_t run_ = 0;
};

// Runs a kernel's body for every thread of every block of the grid.
inline void launch(ShimIndex grid, ShimIndex block, std::size_t shared_bytes, const std::function<void()>& body) {
  gridDim = grid;
  blockDim = block;
  Block threads(static_cast<int>(block.x * block.y * block.z), shared_bytes);
  unsigned seed = 1;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) threads.run(body, seed++);
    }
  }
}

}  // namespace subbit::shim

inline void __syncthreads() { subbit::shim::Block::current_block()->wait_for_block(); }
inline void __syncwarp(unsigned = ~0u) { subbit::shim::Block::current_block()->wait_for_warp(); }
inline unsigned __ballot_sync(unsigned, bool mine) {
  unsigned ballot = 0;
  int lane = 0;
  for (bool other : subbit::shim::Block::current_block()->exchange(mine)) ballot |= unsigned{other} << lane++;
  return ballot;
}
template <class T>
T __shfl_sync(unsigned, T mine, int from) {
  return subbit::shim::Block::current_block()->exchange(mine)[from & 31];
}
template <class T>
T __shfl_xor_sync(unsigned, T mine, int mask) {
  const auto all = subbit::shim::Block::current_block()->exchange(mine);
  return all[(threadIdx.x & 31) ^ mask];
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline unsigned __float_as_uint(float v) { return subbit::shim::bits_as<unsigned>(v); }
inline float __uint_as_float(unsigned v) { return subbit::shim::bits_as<float>(v); }
inline unsigned atomicOr(unsigned* at, unsigned bits) { return std::exchange(*at, *at | bits); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((std::uint64_t{high} << 32 | low) >> (shift & 31));
}
// Byte i of the result is the one that nibble i of the selector names: 0 to 3 of a, 4 to 7 of b.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const std::uint64_t bytes = std::uint64_t{b} << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return result;
}
template <class T>
T __ldg(const T* p) {
  return *p;
}

// 16-bit floats: storage, and conversions rounding to nearest even.
struct __half {
  std::uint16_t bits;
};
struct __nv_bfloat16 {
  std::uint16_t bits;
};
inline float __half2float(__half v) {
  const int exponent = v.bits >> 10 & 31, fraction = v.bits & 1023;
  const float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                          : exponent     ? std::ldexp(1024.0f + static_cast<float>(fraction), exponent - 25)
                                         : std::ldexp(static_cast<float>(fraction), -24);
  return v.bits >> 15 ? -magnitude : magnitude;
}
inline __half __float2half_rn(float v) {
  const std::uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  if (std::isnan(v)) return {0x7fff};
  if (v == 0.0f) return {sign};
  int exponent = 0;
  std::frexp(v, &exponent);  // |v| in [2^(exponent - 1), 2^exponent)
  const int unit = std::max(exponent - 11, -24);
  const float magnitude = std::nearbyint(std::ldexp(std::fabs(v), -unit));  // in units of the last place
  if (!(std::ldexp(magnitude, unit) < 65536.0f)) return {static_cast<std::uint16_t>(sign | 0x7c00)};
  // A magnitude of 1024 and above carries its leading bit into the exponent.
  return {static_cast<std::uint16_t>(sign | (((unit + 24) << 10) + static_cast<int>(magnitude)))};
}
inline float __bfloat162float(__nv_bfloat16 v) { return subbit::shim::bits_as<float>(std::uint32_t{v.bits} << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  if (std::isnan(v)) return {0x7fff};
  const auto bits = subbit::shim::bits_as<std::uint32_t>(v);
  return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

namespace subbit {
inline unsigned char* shared_memory() { return shim::Block::current_block()->shared(); }
}  // namespace subbit
