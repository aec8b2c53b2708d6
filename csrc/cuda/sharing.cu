#include "cuda/epilogue.cuh"
#include "cuda/sharing.h"

namespace subbit {

bool can_run_sharing(const CudaParams&) { return false; }

cudaError_t launch_sharing(const CudaParams&, const CudaOperands&, cudaStream_t) { return cudaErrorNotSupported; }

}  // namespace subbit
