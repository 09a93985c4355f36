// Local response normalisation across channels, forward and backward, with optional bias and ReLU
// before it. The backward pass needs nothing but x (and bias): it recomputes the normaliser.
#pragma once

#include <cuda_runtime_api.h>

#include "common/types.h"
#include "plan/lrn.h"

namespace cnnkernels {

struct LrnParams {
  const void* x;     // [N, C, pixels] or, channels_last, [N, pixels, C]
  const void* bias;  // [C] or nullptr
  const void* dy;    // as x; backward only
  void* out;         // as x: y, or dx in the backward pass
  LrnShape shape;
  Dtype dtype;
  Layout layout;
};

cudaError_t launch_lrn(const LrnParams& params, cudaStream_t stream);
cudaError_t launch_lrn_backward(const LrnParams& params, cudaStream_t stream);

// One family each; launch_lrn chooses.
cudaError_t launch_lrn_nhwc(const LrnParams& params, cudaStream_t stream);
cudaError_t launch_lrn_nchw(const LrnParams& params, cudaStream_t stream);
cudaError_t launch_lrn_any(const LrnParams& params, cudaStream_t stream);
cudaError_t launch_lrn_backward_nhwc(const LrnParams& params, cudaStream_t stream);
cudaError_t launch_lrn_backward_nchw(const LrnParams& params, cudaStream_t stream);
cudaError_t launch_lrn_backward_any(const LrnParams& params, cudaStream_t stream);

}  // namespace cnnkernels
