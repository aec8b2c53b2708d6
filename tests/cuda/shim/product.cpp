// The product's kernels, run on the CPU by the host shim, for tests/cuda/test_product.py.
#include <cstdint>

#include "call.h"
#include "cuda/product/bits.cuh"
#include "cuda/product/float16_bfloat16.cuh"
#include "cuda/product/float32.cuh"
#include "cuda/product/input.cuh"
#include "cuda/product/int8.cuh"
#include "cuda/product/prepare_weight.cuh"
#include "cuda/product/wgmma.cuh"

namespace subbit {
namespace {

enum class TileChoice : int { kBySize = 0, kLarge = 1, kSmall = 2, kWgmma = 3 };

template <class Kind, class Large>
Status run_with(TileChoice tile, const CudaParams& params, const CudaOperands& operands) {
  if (tile == TileChoice::kLarge) return run_product<Kind, Large, Large>(params, operands, {});
  if (tile == TileChoice::kSmall) return run_product<Kind, SmallTile, SmallTile>(params, operands, {});
  return run_product<Kind, Large, SmallTile>(params, operands, {});
}

Status run(TileChoice tile, const CudaParams& params, const CudaOperands& operands) {
  if (tile == TileChoice::kWgmma || (tile == TileChoice::kBySize && runs_wgmma(params))) {
    return run_product_wgmma(params, operands, {});
  }
  if (is_binary(params)) {
    if (!has_bit_products(params.capability))
      return run_with<NumbersKind<std::int8_t, 1>, BytesTile>(tile, params, operands);
    if (input_planes(params, operands) == 1) return run_with<BitsKind<1>, BitsTile>(tile, params, operands);
    return run_with<BitsKind<2>, PlanesTile>(tile, params, operands);
  }
  switch (params.element) {
    case Element::kFloat32:
      return run_with<NumbersKind<__nv_bfloat16, 3>, Float32Tile>(tile, params, operands);
    case Element::kFloat16:
      return run_with<NumbersKind<__half, 1>, Float16Tile>(tile, params, operands);
    case Element::kBfloat16:
      break;
  }
  return run_with<NumbersKind<__nv_bfloat16, 1>, Float16Tile>(tile, params, operands);
}

}  // namespace
}  // namespace subbit

using namespace subbit;

extern "C" {

// What the last call threw, or an empty string.
const char* product_error() { return message.c_str(); }

// 0 where it ran, 1 where the product cannot, -1 where something was thrown.
int product_call(const ConvCall* call) {
  return static_cast<int>(guarded([&]() -> std::int64_t {
    const ConvCall& c = *call;
    const CudaParams params = params_of(c);
    if (!runs_product(params)) return 1;
    CudaOperands o = operands_of(c);
    const auto weight = poisoned(prepared_bytes(params)), scratch = poisoned(scratch_bytes(params, o));
    start_prepare(params, static_cast<const std::uint32_t*>(c.indices), static_cast<const Codeword*>(c.codebook),
                  weight.get(), {});
    o.prepared_weight = weight.get();
    o.scratch = scratch.get();
    return run(static_cast<TileChoice>(c.tile), params, o);
  }));
}

std::int64_t product_scratch(const ConvCall* call) {
  return guarded([&] {
    CudaOperands o;
    o.x = call->x;
    o.x_nonzero = static_cast<const std::uint64_t*>(call->x_nonzero);
    return scratch_bytes(params_of(*call), o);
  });
}

// Whether halves take the large tile.
int product_is_large(const ConvCall* call) { return fills_device<Float16Tile>(params_of(*call)); }

// Whether the call takes wgmma.
int product_is_wgmma(const ConvCall* call) { return runs_wgmma(params_of(*call)); }

int pack_call(const std::int64_t* sizes, const std::int64_t* strides, std::int64_t element, const void* x,
              const float* shift, void* plus, void* nonzero) {
  return static_cast<int>(guarded([&] {
    return std::int64_t{start_pack({sizes[0], sizes[2], sizes[3], 1, sizes[1], x, static_cast<Element>(element),
                                    strides[0], strides[1], strides[2], strides[3], shift, nonzero == nullptr,
                                    static_cast<std::uint32_t*>(plus), static_cast<std::uint32_t*>(nonzero)},
                                   {})};
  }));
}

void split_call(const float* x, std::int64_t count, float* parts) {
  for (std::int64_t i = 0; i < count; ++i) {
    const Parts split_x = split(x[i]);
    for (int part = 0; part < 3; ++part) {
      parts[part * count + i] = __bfloat162float(__nv_bfloat16{split_x.part[part]});
    }
  }
}

// d += a b of halves: a (16, 16), b (16, 8) by columns; the PTX ISA's row and column of each element of a fragment,
// written out number by number.
void mma_float16(const std::uint16_t* a, const std::uint16_t* b, float* d, int is_bfloat16) {
  run_mma([&](unsigned g, unsigned t) {
    FragmentA fa{};
    FragmentB fb{};
    for (unsigned i = 0; i < 8; ++i) {
      const unsigned row = i < 2 || (i >= 4 && i < 6) ? g : g + 8, column = t * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      fa.r[i / 2] |= std::uint32_t{a[row * 16 + column]} << (i % 2 * 16);
    }
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned k = t * 2 + (i & 1) + (i >= 2 ? 8 : 0);
      fb.r[i / 2] |= std::uint32_t{b[g * 16 + k]} << (i % 2 * 16);
    }
    float sums[4];
    const auto at = [&](unsigned i) { return (i < 2 ? g : g + 8) * 8 + t * 2 + (i & 1); };
    for (unsigned i = 0; i < 4; ++i) sums[i] = d[at(i)];
    is_bfloat16 ? mma(sums, fa, fb, __nv_bfloat16{}) : mma(sums, fa, fb, __half{});
    for (unsigned i = 0; i < 4; ++i) d[at(i)] = sums[i];
  });
}

// The same of int8: a (16, 32), b (32, 8) by columns.
void mma_bytes(const std::int8_t* a, const std::int8_t* b, std::int32_t* d) {
  run_mma([&](unsigned g, unsigned t) {
    FragmentA fa{};
    FragmentB fb{};
    const auto bits = [](std::int8_t v) { return std::uint32_t{static_cast<std::uint8_t>(v)}; };
    for (unsigned i = 0; i < 16; ++i) {
      const unsigned row = i < 4 || (i >= 8 && i < 12) ? g : g + 8, column = t * 4 + (i & 3) + (i >= 8 ? 16 : 0);
      fa.r[i / 4] |= bits(a[row * 32 + column]) << (i % 4 * 8);
    }
    for (unsigned i = 0; i < 8; ++i) {
      fb.r[i / 4] |= bits(b[g * 32 + t * 4 + (i & 3) + (i >= 4 ? 16 : 0)]) << (i % 4 * 8);
    }
    std::int32_t sums[4];
    const auto at = [&](unsigned i) { return (i < 2 ? g : g + 8) * 8 + t * 2 + (i & 1); };
    for (unsigned i = 0; i < 4; ++i) sums[i] = d[at(i)];
    mma(sums, fa, fb, std::int8_t{});
    for (unsigned i = 0; i < 4; ++i) d[at(i)] = sums[i];
  });
}

// The same of bits, given as bytes: a (16, 256), b (256, 8) by columns.
void mma_bits(const std::uint8_t* a, const std::uint8_t* b, std::int32_t* d) {
  run_mma([&](unsigned g, unsigned t) {
    FragmentA fa{};
    FragmentB fb{};
    for (unsigned i = 0; i < 128; ++i) {
      const unsigned row = i < 32 || (i >= 64 && i < 96) ? g : g + 8, k = t * 32 + (i & 31) + (i >= 64 ? 128 : 0);
      fa.r[i / 32] |= std::uint32_t{a[row * 256 + k]} << (i % 32);
    }
    for (unsigned i = 0; i < 64; ++i) {
      fb.r[i / 32] |= std::uint32_t{b[g * 256 + t * 32 + (i & 31) + (i >= 32 ? 128 : 0)]} << (i % 32);
    }
    std::int32_t sums[4];
    const auto at = [&](unsigned i) { return (i < 2 ? g : g + 8) * 8 + t * 2 + (i & 1); };
    for (unsigned i = 0; i < 4; ++i) sums[i] = d[at(i)];
    mma_and_popc(sums, fa, fb);
    for (unsigned i = 0; i < 4; ++i) d[at(i)] = sums[i];
  });
}
}

namespace {

// Multiplies a (64, 16) with 16 numbers of each row of b (kFragments * 8, 64), from number 16 * slice on, as a
// warpgroup does, with what the PTX ISA says written out number by number. `without` leaves out one thing: 1 the wait,
// 2 the fence of shared memory, 3 the barrier, 4 the fence of registers; or 5 overwrites b too early, 6 gives one
// thread another matrix.
template <int kFragments, class Half>
void run_wgmma(const std::uint16_t* a, const std::uint16_t* b, float* d, int slice, int without) {
  constexpr unsigned kThreads = 128, kRows = kFragments * 8, kPieces = 8;
  shim::launch({1, 1, 1}, {kThreads, 1, 1}, kRows * 128, [&] {
    unsigned char* shared = shared_memory();
    for (unsigned i = threadIdx.x; i < kRows * kPieces; i += kThreads) {
      const unsigned to = i * 16;
      copy_async<16>(shared + (to ^ ((to >> 7 & 7) << 4)), b + i * 8, true);
    }
    commit_copies();
    wait_for_copies<0>();
    if (without != 2) fence_for_products();
    if (without != 3) __syncthreads();
    const unsigned warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    FragmentA fa{};
    for (unsigned i = 0; i < 8; ++i) {
      const unsigned row = warp * 16 + g + (i / 2 % 2) * 8, column = t * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      fa.r[i / 2] |= std::uint32_t{a[row * 16 + column]} << (i % 2 * 16);
    }
    float sums[kFragments][4];
    const auto at = [&](unsigned n, unsigned i) { return (warp * 16 + g + i / 2 * 8) * kRows + n * 8 + 2 * t + i % 2; };
    for (unsigned n = 0; n < kFragments; ++n) {
      for (unsigned i = 0; i < 4; ++i) sums[n][i] = d[at(n, i)];
    }
    if (without != 4) fence_registers();
    const int other = without == 6 && threadIdx.x == 77 ? 32 : 0;
    multiply_async(sums, fa, swizzled_descriptor(shared_address(shared + slice * 32 + other)), true, Half{});
    commit_products();
    if (without == 5) copy_async<16>(shared + slice * 32, b, true);
    if (without != 1) wait_for_products<0>();
    for (unsigned n = 0; n < kFragments; ++n) {
      for (unsigned i = 0; i < 4; ++i) d[at(n, i)] = sums[n][i];
    }
  });
}

}  // namespace

extern "C" {

int wgmma_float16(const std::uint16_t* a, const std::uint16_t* b, float* d, int columns, int is_bfloat16, int slice,
                  int without) {
  return static_cast<int>(guarded([&]() -> std::int64_t {
    if (columns == 64) {
      is_bfloat16 ? run_wgmma<8, __nv_bfloat16>(a, b, d, slice, without)
                  : run_wgmma<8, __half>(a, b, d, slice, without);
    } else {
      is_bfloat16 ? run_wgmma<16, __nv_bfloat16>(a, b, d, slice, without)
                  : run_wgmma<16, __half>(a, b, d, slice, without);
    }
    return 0;
  }));
}
}
