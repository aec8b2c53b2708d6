// The sparse route's kernels, run on the CPU by the host shim, for tests/cuda/test_sparse.py.
#include <cstdint>

#include "call.h"
#include "cuda/product/input.cuh"
#include "cuda/sparse/prepare_weight.cuh"
#include "cuda/sparse/run.cuh"

using namespace subbit;

namespace {

Status run(const CudaParams& params, const CudaOperands& operands, const SparsePlan& plan) {
  switch (params.element) {
    case Element::kFloat32:
      return run_sparse<__nv_bfloat16, 3>(params, operands, plan, {});
    case Element::kFloat16:
      return run_sparse<__half, 1>(params, operands, plan, {});
    case Element::kBfloat16:
      break;
  }
  return run_sparse<__nv_bfloat16, 1>(params, operands, plan, {});
}

// The call's tile: so many outputs, or 0 for what sizes ask for.
SparsePlan plan_of(const ConvCall& call, const CudaParams& params) {
  if (call.tile == 0) return plan_sparse(params);
  const int outputs = static_cast<int>(call.tile);
  return {outputs, plan_sparse_box(params, outputs)};
}

}  // namespace

extern "C" {

const char* sparse_error() { return message.c_str(); }

// 0 where it ran, 1 where the route cannot, -1 where something was thrown.
int sparse_call(const ConvCall* call) {
  return static_cast<int>(guarded([&]() -> std::int64_t {
    const CudaParams params = params_of(*call);
    if (!runs_sparse(params)) return 1;
    CudaOperands o = operands_of(*call);
    const auto weight = poisoned(sparse_weight_items(sparse_weight_shape(params)) * 8);
    const auto scratch = poisoned(scratch_bytes(params, o));
    start_prepare_sparse(params, o.indices, weight.get(), {});
    o.prepared_weight = weight.get();
    o.scratch = scratch.get();
    return run(params, o, plan_of(*call, params));
  }));
}

// The plan: outputs, images, rows, pairs, span, rows and columns of the tile of x, bytes of shared memory, boxes.
void sparse_plan(const ConvCall* call, std::int64_t* plan) {
  guarded([&] {
    const CudaParams params = params_of(*call);
    const auto [outputs, box] = plan_of(*call, params);
    const std::int64_t values[] = {outputs,       box.images,       box.rows,         box.pairs, box.span,
                                   box.tile_rows, box.tile_columns, box.shared_bytes, 0};
    for (int i = 0; i < 9; ++i) plan[i] = values[i];
    if (box.images != 0) plan[8] = box.boxes(params.conv);
    return std::int64_t{0};
  });
}

// The banks of the 16 bytes that the first 8 rows of a matrix of positions are read from: 3 x span, rows of a tile of
// so many columns.
void sparse_banks(int columns, int span, int pieces, int* banks) {
  for (int k = 0; k < 8; ++k) {
    banks[k] = (k / span * sparse_row_bytes(columns, span, pieces) + k % span * sparse_position_bytes(pieces)) % 128;
  }
}

// d += a b, a (16, 32) being 2:4 sparse, b (32, 8) by columns; compressed and laid out as the PTX ISA has it, number by
// number. Lanes that the selector does not pick hold other metadata.
void mma_sparse_float16(const std::uint16_t* a, const std::uint16_t* b, float* d, int is_bfloat16, int selector) {
  const auto kept = [&](unsigned row, unsigned group) {
    struct {
      unsigned index[2];
    } found{{0, 1}};
    unsigned count = 0;
    for (unsigned i = 0; i < 4; ++i) {
      if ((a[row * 32 + 4 * group + i] & 0x7fff) != 0) found.index[count++] = i;
    }
    if (count == 1 && found.index[0] >= 1) found = {{0, found.index[0]}};
    return found;
  };
  run_mma([&](unsigned g, unsigned t) {
    FragmentA fa{};
    for (unsigned i = 0; i < 8; ++i) {  // number i of the compressed row, of group t or t + 4
      const unsigned row = i < 2 || (i >= 4 && i < 6) ? g : g + 8, group = i < 4 ? t : t + 4;
      const std::uint32_t number = a[row * 32 + 4 * group + kept(row, group).index[i % 2]];
      fa.r[i / 2] |= number << (i % 2 * 16);
    }
    std::uint32_t words[4] = {}, metadata = 0x4e4e4e4eu;
    for (unsigned i = 0; i < 8; ++i) {
      words[i / 2] |= std::uint32_t{b[g * 32 + i / 2 * 8 + 2 * t + i % 2]} << (i % 2 * 16);
    }
    if (t / 2 == static_cast<unsigned>(selector)) {
      metadata = 0;
      for (unsigned i = 0; i < 8; ++i) {
        const auto found = kept(g + i / 4 * 8, t % 2 * 4 + i % 4);
        metadata |= (found.index[0] | found.index[1] << 2) << (4 * i);
      }
    }
    const uint4 fb = make_uint4(words[0], words[1], words[2], words[3]);
    float sums[4];
    const auto at = [&](unsigned i) { return (i < 2 ? g : g + 8) * 8 + t * 2 + (i & 1); };
    for (unsigned i = 0; i < 4; ++i) sums[i] = d[at(i)];
    const auto multiply = [&](auto half) {
      selector == 0 ? mma_sparse<0>(sums, fa, fb, metadata, half) : mma_sparse<1>(sums, fa, fb, metadata, half);
    };
    is_bfloat16 ? multiply(__nv_bfloat16{}) : multiply(__half{});
    for (unsigned i = 0; i < 4; ++i) d[at(i)] = sums[i];
  });
}

// Four 8x8 matrices, [matrix][row][column], as registers: [lane][register] words.
void load_matrices(const std::uint16_t* matrices, std::uint32_t* registers) {
  shim::launch({1, 1, 1}, {32, 1, 1}, 512, [&] {
    unsigned char* const rows = shared_memory();
    std::memcpy(rows + threadIdx.x * 16, matrices + threadIdx.x * 8, 16);
    __syncthreads();
    const FragmentA a = load_transposed(rows + threadIdx.x * 16);
    for (unsigned i = 0; i < 4; ++i) registers[threadIdx.x * 4 + i] = a.r[i];
  });
}
}
