#include "cpu/families/kernels.h"
#include "cpu/families/rows/steps.h"
#include "cpu/simd/vec_avx2.h"

namespace subbit {

void stage_float_rows_avx2(const StageTask& task) { stage_rows<F32x8>(task); }
void stage_binary_rows_avx2(const StageTask& task) { stage_rows<I8x32>(task); }

void respond_float_rows_avx2(const RespondRowsTask& task) { respond_rows<F32x8, 2>(task); }
void respond_binary_rows_avx2(const RespondRowsTask& task) { respond_rows<I8x32, 1>(task); }

}  // namespace subbit
