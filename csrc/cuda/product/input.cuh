// x brought into the order that the product reads, if it is not in it.
#pragma once

#include <cstdint>

#include "cuda/common/arrange.cuh"
#include "cuda/common/sign_bytes.cuh"
#include "cuda/pack/pack.cuh"
#include "cuda/product/run.cuh"

namespace subbit {

Status start_input(const CudaParams& params, const CudaOperands& operands, Stream stream, ProductInput& input) {
  const ConvProblem& conv = params.conv;
  const std::int64_t group = group_bytes(params);
  input.tap_pieces = static_cast<std::uint32_t>(group / (multiplies_bits(params) ? 8 : kPieceBytes));
  input.group = group;
  if (reads_in_place(params, operands)) {
    if (is_binary(params)) {
      input.planes[0] = reinterpret_cast<const unsigned char*>(operands.x_plus);
      input.planes[1] = reinterpret_cast<const unsigned char*>(operands.x_nonzero);
      input.w = ceil_div(conv.in_channels, kWordChannels) * 8;
      input.h = conv.width * input.w;
      input.n = conv.height * input.h;
    } else {
      input.planes[0] = static_cast<const unsigned char*>(operands.x);
      input.n = conv.x_n * 2;
      input.h = conv.x_h * 2;
      input.w = conv.x_w * 2;
    }
    return kStarted;
  }
  auto* scratch = static_cast<unsigned char*>(operands.scratch);
  const int planes = input_planes(params, operands);
  for (int i = 0; i < planes; ++i) input.planes[i] = scratch + i * plane_bytes(params);
  input.w = conv.groups * group;
  input.h = conv.width * input.w;
  input.n = conv.height * input.h;
  if (is_binary(params) && !has_bit_products(params.capability)) {
    SignBytesArgs args{};
    args.batch = conv.batch, args.height = conv.height, args.width = conv.width;
    args.groups = conv.groups, args.group_channels = group_channels_of(params);
    args.x = operands.x, args.element = params.element;
    args.x_n = conv.x_n, args.x_c = conv.x_c, args.x_h = conv.x_h, args.x_w = conv.x_w;
    args.sign_zero = conv.sign_zero;
    args.plus = reinterpret_cast<const std::uint32_t*>(operands.x_plus);
    args.nonzero = reinterpret_cast<const std::uint32_t*>(operands.x_nonzero);
    args.bytes = reinterpret_cast<uint4*>(scratch);
    return start_sign_bytes(args, stream);
  }
  if (is_binary(params) && conv.x_is_packed) {
    return start_regroup(
        {input_pixels(params),
         conv.groups,
         group_channels_of(params),
         {operands.x_plus, operands.x_nonzero},
         {reinterpret_cast<std::uint64_t*>(scratch), reinterpret_cast<std::uint64_t*>(scratch + plane_bytes(params))}},
        stream);
  }
  if (is_binary(params)) {  // always with nonzero: the sign of NaN is 0 even where that of 0 is not
    return start_pack(
        {conv.batch, conv.height, conv.width, conv.groups, group_channels_of(params), operands.x, params.element,
         conv.x_n, conv.x_c, conv.x_h, conv.x_w, nullptr, conv.sign_zero, reinterpret_cast<std::uint32_t*>(scratch),
         reinterpret_cast<std::uint32_t*>(scratch + plane_bytes(params))},
        stream);
  }
  const ArrangeArgs arrange{
      conv.batch, conv.height, conv.width, conv.groups, group_channels_of(params),        operands.x,
      conv.x_n,   conv.x_c,    conv.x_h,   conv.x_w,    reinterpret_cast<uint4*>(scratch)};
  // 16-bit numbers are copied as they are, whatever they mean.
  return params.element == Element::kFloat32 ? start_arrange<float>(arrange, stream)
                                             : start_arrange<std::uint16_t>(arrange, stream);
}

}  // namespace subbit
