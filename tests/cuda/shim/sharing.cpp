// The sharing kernel on the CPU, for tests: sizes and addresses come as plain arrays (tests/cuda/test_sharing.py).
#include <cstdio>
#include <exception>

#include "cuda/sharing/kernel.cuh"

using namespace subbit;

namespace {

CudaParams params_of(const std::int64_t* v) {
  CudaParams params;
  ConvProblem& c = params.conv;
  c.unit = static_cast<Unit>(*v++);
  c.activations = static_cast<Activations>(*v++);
  c.sign_zero = *v++ != 0;
  c.activation = static_cast<Activation>(*v++);
  for (std::int64_t* size :
       {&c.batch,  &c.in_channels, &c.height,     &c.width,      &c.out_channels, &c.out_height, &c.out_width,
        &c.groups, &c.stride_h,    &c.stride_w,   &c.pad_h,      &c.pad_w,        &c.dilation_h, &c.dilation_w,
        &c.x_n,    &c.x_c,         &c.x_h,        &c.x_w,        &c.y_n,          &c.y_c,        &c.y_h,
        &c.y_w,    &c.residual_n,  &c.residual_c, &c.residual_h, &c.residual_w}) {
    *size = *v++;
  }
  c.x_is_packed = *v++ != 0;
  c.has_y = *v++ != 0;
  c.packs = *v++ != 0;
  params.element = static_cast<Element>(*v++);
  params.codewords = static_cast<int>(*v++);
  return params;
}

CudaOperands operands_of(void* const* p) {
  CudaOperands o;
  const auto floats = [](void* at) { return static_cast<const float*>(at); };
  const auto words = [](void* at) { return static_cast<std::uint64_t*>(at); };
  o.x = p[0];
  o.x_plus = words(p[1]);
  o.x_nonzero = words(p[2]);
  o.indices = static_cast<const std::uint32_t*>(p[3]);
  o.codebook = static_cast<const Codeword*>(p[4]);
  o.scale = floats(p[5]);
  o.bias = floats(p[6]);
  o.residual = p[7];
  o.slope = floats(p[8]);
  o.shift = floats(p[9]);
  o.y = p[10];
  o.y_plus = words(p[11]);
  o.y_nonzero = words(p[12]);
  o.pack_shift = floats(p[13]);
  return o;
}

DeviceLimits limits_of(const std::int64_t* v) {
  return {static_cast<int>(v[0]), static_cast<int>(v[1]), static_cast<int>(v[2])};
}

void clear_words(const SharingTask& task) {
  const std::int64_t words = std::int64_t{task.pixels} * task.words;
  for (std::uint64_t* plane : {task.operands.y_plus, task.operands.y_nonzero}) {
    if (plane) std::fill(plane, plane + words, 0);
  }
}

void describe(const SharingTile& tile, std::int64_t* to) {
  for (std::int64_t value : {std::int64_t{tile.two_per_word}, std::int64_t{tile.words_per_lane},
                             std::int64_t{tile.warps}, std::int64_t{tile.units}, std::int64_t{tile.buffers},
                             std::int64_t{tile.parts}, tile.pixel_tiles, std::int64_t{tile.shared_bytes}}) {
    *to++ = value;
  }
}

}  // namespace

// How many tiles fit; writes 8 numbers of each (see describe), and of the one that is planned behind them.
extern "C" int subbit_sharing_tiles(const std::int64_t* sizes, const std::int64_t* limits, std::int64_t* to) {
  const CudaParams params = params_of(sizes);
  const auto tiles = sharing_tiles(params, limits_of(limits));
  for (const SharingTile& tile : tiles) describe(tile, to), to += 8;
  describe(plan_sharing(params, limits_of(limits)), to);
  return static_cast<int>(tiles.size());
}

// Runs the kernel with one of the tiles. Returns 0, or 1 after writing what went wrong to stderr.
extern "C" int subbit_run_sharing(const std::int64_t* sizes, const std::int64_t* limits, int tile,
                                  void* const* pointers) {
  const CudaParams params = params_of(sizes);
  const auto tiles = sharing_tiles(params, limits_of(limits));
  const SharingTask task = sharing_task(params, operands_of(pointers), tiles.at(tile));
  if (clears_words(task)) clear_words(task);
  try {
    with_sharing(task, [&](auto kind) {
      using Kernel = typename decltype(kind)::type;
      shim::launch({static_cast<unsigned>(task.tile.blocks(params)), 1, 1},
                   {static_cast<unsigned>(task.tile.warps * kWarp), 1, 1},
                   static_cast<std::size_t>(task.tile.shared_bytes), [&] { Kernel(task).run(); });
    });
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
