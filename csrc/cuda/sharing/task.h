// What the sharing kernel is given: a call, its tile, and numbers that every thread would work out.
#pragma once

#include <cstdint>

#include "cuda/common/params.h"
#include "cuda/sharing/tile.h"

namespace subbit {

struct SharingTask {
  CudaParams params;
  CudaOperands operands;
  SharingTile tile;
  int tau = 0;
  int units = 0, group_outputs = 0;  // of a group
  int responses_of_warp = 0;         // in a block of units
  unsigned pixels = 0;               // of all images' outputs
  int row_words = 0;                 // of an output's indices
  int words = 0;                     // of a pixel of y, packed
  bool packs_pieces = false;         // a warp's outputs are whole 16-bit pieces of packed words
};

inline SharingTask sharing_task(const CudaParams& params, const CudaOperands& operands, const SharingTile& tile) {
  SharingTask task{params, operands, tile};
  task.tau = tau_for(params.codewords);
  task.units = static_cast<int>(params.units());
  task.group_outputs = static_cast<int>(params.group_outputs());
  task.responses_of_warp = (tile.units * params.codewords + tile.warps - 1) / tile.warps;
  task.pixels = static_cast<unsigned>(params.conv.batch * params.conv.out_height * params.conv.out_width);
  task.row_words = static_cast<int>(index_row_words(task.units, task.tau));
  ConvProblem& conv = task.params.conv;
  task.words = static_cast<int>(ceil_div(conv.out_channels, kWordChannels));
  task.packs_pieces = conv.groups == 1 || task.group_outputs % 16 == 0;
  if (conv.x_is_packed) {  // strides count words
    conv.x_c = 0;
    conv.x_w = ceil_div(conv.in_channels, kWordChannels);
    conv.x_h = conv.width * conv.x_w;
    conv.x_n = conv.height * conv.x_h;
  }
  return task;
}

// Whether the words of y must be cleared before the launch: bits are then added to them.
inline bool clears_words(const SharingTask& task) {
  return task.params.conv.packs && (!task.packs_pieces || task.params.conv.out_channels % kWordChannels != 0);
}

}  // namespace subbit
