// The epilogue of a tile: sums that a block has in shared memory become y, as floats and as packed activations.
//
// A warp takes 32 outputs of a pixel, or 32 pixels of an output, as y has them side by side. The code is there once and
// not for each of a thread's sums, and a warp that lies along outputs has the bits of a word of packed activations.
#pragma once

#include <cstdint>

#include "cuda/common/epilogue.cuh"
#include "cuda/common/params.h"
#include "cuda/common/pixel.cuh"
#include "cuda/common/platform.h"

namespace subbit {

// Where a result goes; `image` is negative where there is none.
struct OutputPixel {
  std::int32_t image, row, column;
};

// What the epilogue needs of a call beside its parameters and operands.
struct TileEpilogueArgs {
  std::int64_t y_words;  // 32-bit words of a pixel's packed results
  bool along_outputs;    // lanes lie along outputs, else along pixels; packed results need it
};

inline TileEpilogueArgs tile_epilogue_args(const ConvProblem& conv) {
  return {ceil_div(conv.out_channels, kWordChannels) * 2, conv.packs || conv.y_c == 1};
}

// For tiles of kOutputs outputs of one group, in blocks of kThreads threads.
template <int kOutputs, int kThreads>
struct TileEpilogue {
  static constexpr int kWarp = 32;
  static_assert(kOutputs % kWarp == 0 && kThreads % kWarp == 0);

  // The outputs' parts of the epilogue, in shared memory.
  struct Channels {
    float scale[kOutputs], bias[kOutputs], slope[kOutputs], shift[kOutputs], pack_shift[kOutputs];
  };

  // Which outputs a tile has: output `first` of the group and those after it, as far as there are any.
  struct Outputs {
    std::int64_t group, group_outputs, first;

    SUBBIT_DEVICE std::int64_t channel(int i) const { return group * group_outputs + first + i; }
    SUBBIT_DEVICE bool has(int i) const { return first + i < group_outputs; }
  };

  static SUBBIT_DEVICE void load(const CudaOperands& operands, const Outputs& outputs, Channels& channels) {
    SUBBIT_UNROLL
    for (int first = 0; first < kOutputs; first += kThreads) {
      const int i = first + static_cast<int>(threadIdx.x);
      if ((kOutputs % kThreads != 0 && i >= kOutputs) || !outputs.has(i)) continue;
      const ChannelEpilogue channel = load_epilogue(operands, outputs.channel(i));
      channels.scale[i] = channel.scale;
      channels.bias[i] = channel.bias;
      channels.slope[i] = channel.slope;
      channels.shift[i] = channel.shift;
      channels.pack_shift[i] = channel.pack_shift;
    }
  }

  // Of kRows rows of sums: pixel_of(row) is the row's OutputPixel, sum_of(row, output) the sum, asked for only where
  // there are such a pixel and output. All threads of the block call it, with channels and sums shared before.
  template <int kRows, class PixelOf, class SumOf>
  static SUBBIT_DEVICE void finish(const CudaParams& params, const CudaOperands& o, const TileEpilogueArgs& args,
                                   const Outputs& outputs, const Channels& channels, const PixelOf& pixel_of,
                                   const SumOf& sum_of) {
    constexpr int kItems = (kRows * kOutputs + kThreads - 1) / kThreads;
    static_assert(kRows * kOutputs % kThreads == 0, "a warp has none or all of its items");
    const ConvProblem& conv = params.conv;
    // Groups end with whole words; after a single one's last output there may be half a word of zeros.
    const std::int64_t word_end = conv.groups == 1 ? args.y_words : (outputs.group + 1) * outputs.group_outputs / kWarp;
    // Not all of it, as nvcc may like to.
    SUBBIT_UNROLL_4
    for (int i = 0; i < kItems; ++i) {
      const int item = i * kThreads + static_cast<int>(threadIdx.x);
      const int row = args.along_outputs ? item / kOutputs : item % kRows;
      const int output = args.along_outputs ? item % kOutputs : item / kRows;
      const OutputPixel pixel = pixel_of(row);
      const std::int64_t image = pixel.image, out_row = pixel.row, out_column = pixel.column;
      const std::int64_t channel = outputs.channel(output);
      SignBits signs{false, false};
      if (image >= 0 && outputs.has(output)) {
        const float sum = sum_of(row, output);
        float residual = 0.0f;
        if (o.residual) {
          residual = load_element(o.residual, params.element,
                                  image * conv.residual_n + channel * conv.residual_c + out_row * conv.residual_h +
                                      out_column * conv.residual_w);
        }
        const ChannelEpilogue of_channel{channels.scale[output], channels.bias[output], channels.slope[output],
                                         channels.shift[output], channels.pack_shift[output]};
        const float v = finish_sum(sum, of_channel, conv.activation, residual);
        signs = sign_bits(v, of_channel.pack_shift, o.y_nonzero == nullptr);
        if (o.y) {
          store_element(o.y, params.element,
                        image * conv.y_n + channel * conv.y_c + out_row * conv.y_h + out_column * conv.y_w, v);
        }
      }
      if (o.y_plus) {  // lanes lie along outputs then
        const std::uint32_t plus = __ballot_sync(~0u, signs.plus), nonzero = __ballot_sync(~0u, signs.nonzero);
        const std::int64_t word = channel / kWarp;
        if (output % kWarp == 0 && image >= 0 && word < word_end) {
          const std::int64_t to =
              ((image * conv.out_height + out_row) * conv.out_width + out_column) * args.y_words + word;
          reinterpret_cast<std::uint32_t*>(o.y_plus)[to] = plus;
          if (o.y_nonzero) reinterpret_cast<std::uint32_t*>(o.y_nonzero)[to] = nonzero;
        }
      }
    }
  }
};

}  // namespace subbit
