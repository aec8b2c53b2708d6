#include "cpu/families/kernels.h"
#include "cpu/families/rows/steps.h"
#include "cpu/simd/vec_avx2.h"

namespace subbit {

void stage_float_rows_avx2(const StageTask& task) { stage_rows<F32x8>(task); }
void stage_binary_rows_avx2(const StageTask& task) { stage_rows<I8x32>(task); }

void respond_float_rows_avx2(const RespondRowsTask& task) { respond_rows<F32x8, 2>(task); }
void respond_binary_rows_avx2(const RespondRowsTask& task) { respond_rows<I8x32, 1>(task); }

void gather_float_rows_avx2(const GatherRowsTask& task) {
  if (task.pixels > 8) {
    gather_rows<F32x8, 2, 16>(task);
  } else {
    gather_rows<F32x8, 1, 16>(task);
  }
}

void gather_binary_rows_avx2(const GatherRowsTask& task) { gather_rows<I8x32, 1, 32>(task); }

void finish_float_rows_avx2(const FinishTask& task) { finish_rows<F32x8, float, 16>(task); }
void finish_binary_rows_avx2(const FinishTask& task) { finish_rows<F32x8, std::int16_t, 32>(task); }

void pack_float_rows_avx2(const PackTask& task) { pack_rows<F32x8>(task); }
void pack_binary_rows_avx2(const PackTask& task) { pack_rows<F32x8>(task); }

}  // namespace subbit
