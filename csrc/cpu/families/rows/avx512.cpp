#include "cpu/families/kernels.h"
#include "cpu/families/rows/steps.h"
#include "cpu/simd/vec_avx2.h"
#include "cpu/simd/vec_avx512.h"

namespace subbit {

void stage_float_rows_avx512(const StageTask& task) { stage_rows<F32x8>(task); }

void respond_float_rows_avx512(const RespondRowsTask& task) { respond_rows<F32x8, 2>(task); }

void gather_float_rows_avx512(const GatherRowsTask& task) {
  if (task.pixels > 8) {
    gather_rows<F32x8, 2, 16>(task);
  } else {
    gather_rows<F32x8, 1, 16>(task);  // half a row is half the work: a 7x7 image is three rows and one pixel
  }
}

void finish_float_rows_avx512(const FinishTask& task) { finish_rows<F32x16, float, 16>(task); }

void pack_float_rows_avx512(const PackTask& task) { pack_rows<F32x8>(task); }

}  // namespace subbit
