// How floats are staged, in the families whose planes hold single channels.
#pragma once

#include <cstdint>

namespace subbit {

// One plane: the elements of an image (one channel, one phase of rows and columns: core/phases.h) that a strip reads,
// without gaps between rows. Rows outside [inside_begin, inside_end) are padding; of the others element i lies in the
// image where 0 <= i - before < count. Everything else is 0.
struct StageTask {
  const float* x;               // the first element in the image, in row inside_begin
  std::int64_t step, row_step;  // elements of the image from column to column and from row to row
  std::int64_t rows, columns;
  std::int64_t inside_begin, inside_end;
  std::int64_t before, count;
  void* plane;
  bool binarize;   // float kernels only: take the sign of the input
  bool sign_zero;  // sign(0) is +1
};

// Vectors are loaded and stored whole, so up to this many bytes before and after a plane are touched too.
constexpr std::int64_t kPlaneSlack = 128;

}  // namespace subbit
