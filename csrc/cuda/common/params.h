// One convolution on the device: core's ConvProblem with what only the device needs; and apart from them the pointers
// of a call. Plain data, checked by the caller. Needs neither CUDA's headers nor a device.
#pragma once

#include <cstdint>

#include "core/checked.h"
#include "core/problem.h"

namespace subbit {

// What x, the residual and y hold.
enum class Element { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };

constexpr int element_bytes(Element element) { return element == Element::kFloat32 ? 4 : 2; }

// Whether an architecture, major * 10 + minor, multiplies bits by tensor cores. Later ones emulate that by int8
// products, eight for one: there binary activations are multiplied as int8 from the start.
constexpr bool has_bit_products(int capability) { return capability < 100; }

// Blocks that fill a device: with fewer of a large tile, a kernel takes a smaller one.
// As many blocks as the devices in question have multiprocessors (108 to 144). A constant, so that the bits of a result
// depend on the device no more than its instructions make them.
constexpr std::int64_t kEnoughBlocks = 128;

struct CudaParams {
  ConvProblem conv;  // threads means nothing here
  Element element = Element::kFloat32;
  int codewords = 0;
  int capability = 0;  // of the device that runs it, major * 10 + minor

  std::int64_t units() const { return conv.in_channels / conv.groups / unit_channels(conv.unit); }
  std::int64_t group_outputs() const { return conv.out_channels / conv.groups; }
};

// The tau of core's tau_of, which CUDA's compiler can fold.
constexpr int tau_for(int codewords) {
  int tau = 1;
  while ((1 << tau) < codewords) ++tau;
  return tau;
}

// 32-bit words of one output channel's indices on the device: the saved row (core/packed.h), padded to whole words.
constexpr std::int64_t index_row_words(std::int64_t units, int tau) { return ceil_div(units * tau, 32); }

// All in the device's memory; what is null is left out. As core's ConvOperands but for x, the weight, the residual
// and y: y = activation(scale * sum + bias + residual) + shift in float32, each operation rounded by itself, then
// rounded to the element of y.
struct CudaOperands {
  const void* x = nullptr;  // elements; or packed:
  const std::uint64_t* x_plus = nullptr;
  const std::uint64_t* x_nonzero = nullptr;
  const std::uint32_t* indices = nullptr;  // [out_channels][index_row_words], every index below the codewords
  const Codeword* codebook = nullptr;      // [codewords]
  const void* prepared_weight = nullptr;   // what prepare() wrote for the route; the product reads only this
  const float* scale = nullptr;            // (out_channels,), as are bias, slope, shift and pack_shift
  const float* bias = nullptr;
  const void* residual = nullptr;  // elements
  const float* slope = nullptr;
  const float* shift = nullptr;
  void* y = nullptr;  // elements
  std::uint64_t* y_plus = nullptr;
  std::uint64_t* y_nonzero = nullptr;
  const float* pack_shift = nullptr;
  void* scratch = nullptr;  // scratch_bytes(), 16-byte aligned
};

}  // namespace subbit
