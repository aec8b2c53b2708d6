// What the tests hand to the kernels' shims: one convolution, and what is done around its call.
#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <string>

#include "cuda/common/mma.cuh"
#include "cuda/common/params.h"
#include "cuda/common/platform.h"

namespace subbit {

struct ConvCall {
  std::int64_t unit, binary, sign_zero, activation, element, codewords, tile, capability;
  std::int64_t batch, in_channels, height, width, out_channels, out_height, out_width, groups;
  std::int64_t stride[2], pad[2], dilation[2];
  std::int64_t x_strides[4], y_strides[4], residual_strides[4];
  const void *x, *x_plus, *x_nonzero, *indices, *codebook, *scale, *bias, *residual, *slope, *shift, *pack_shift;
  void *y, *y_plus, *y_nonzero;
};

inline CudaParams params_of(const ConvCall& c) {
  CudaParams p;
  ConvProblem& v = p.conv;
  v.unit = static_cast<Unit>(c.unit);
  v.activations = static_cast<Activations>(c.binary);
  v.sign_zero = c.sign_zero != 0;
  v.activation = static_cast<Activation>(c.activation);
  p.element = static_cast<Element>(c.element);
  p.codewords = static_cast<int>(c.codewords);
  p.capability = static_cast<int>(c.capability);
  v.batch = c.batch, v.in_channels = c.in_channels, v.height = c.height, v.width = c.width;
  v.out_channels = c.out_channels, v.out_height = c.out_height, v.out_width = c.out_width, v.groups = c.groups;
  v.stride_h = c.stride[0], v.stride_w = c.stride[1], v.pad_h = c.pad[0], v.pad_w = c.pad[1];
  v.dilation_h = c.dilation[0], v.dilation_w = c.dilation[1];
  v.x_n = c.x_strides[0], v.x_c = c.x_strides[1], v.x_h = c.x_strides[2], v.x_w = c.x_strides[3];
  v.y_n = c.y_strides[0], v.y_c = c.y_strides[1], v.y_h = c.y_strides[2], v.y_w = c.y_strides[3];
  v.residual_n = c.residual_strides[0], v.residual_c = c.residual_strides[1];
  v.residual_h = c.residual_strides[2], v.residual_w = c.residual_strides[3];
  v.x_is_packed = c.x_plus != nullptr, v.has_y = c.y != nullptr, v.packs = c.y_plus != nullptr;
  return p;
}

inline CudaOperands operands_of(const ConvCall& c) {
  CudaOperands o;
  o.x = c.x;
  o.x_plus = static_cast<const std::uint64_t*>(c.x_plus), o.x_nonzero = static_cast<const std::uint64_t*>(c.x_nonzero);
  o.scale = static_cast<const float*>(c.scale), o.bias = static_cast<const float*>(c.bias);
  o.residual = c.residual;
  o.slope = static_cast<const float*>(c.slope), o.shift = static_cast<const float*>(c.shift);
  o.pack_shift = static_cast<const float*>(c.pack_shift);
  o.y = c.y;
  o.y_plus = static_cast<std::uint64_t*>(c.y_plus), o.y_nonzero = static_cast<std::uint64_t*>(c.y_nonzero);
  o.indices = static_cast<const std::uint32_t*>(c.indices);
  o.codebook = static_cast<const Codeword*>(c.codebook);
  return o;
}

// Memory whose every number is NaN and whose every bit is 1 until it is written.
inline std::unique_ptr<uint4[]> poisoned(std::int64_t bytes) {
  auto memory = std::make_unique<uint4[]>(static_cast<std::size_t>(bytes / 16 + 1));
  std::memset(memory.get(), 0xff, static_cast<std::size_t>(bytes));
  return memory;
}

// Multiplies two matrices (16, k) and (k, 8) as fragments, with the warp's lanes reading what the PTX ISA says.
template <class Multiply>
void run_mma(const Multiply& multiply) {
  shim::launch({1, 1, 1}, {32, 1, 1}, 0, [&] { multiply(threadIdx.x / 4, threadIdx.x % 4); });
}

// What the last call threw, or an empty string.
inline std::string message;

template <class F>
std::int64_t guarded(const F& f) {
  message.clear();
  try {
    return f();
  } catch (const std::exception& error) {
    message = error.what();
    return -1;
  }
}

}  // namespace subbit
