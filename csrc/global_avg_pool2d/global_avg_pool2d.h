// Mean over the pixels of every plane, and its backward pass (every pixel gets grad / pixels).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/types.h"

namespace cnnkernels {

struct GlobalAvgPoolParams {
  const void*
      in;     // forward: x [N, C, pixels] or, channels_last, [N, pixels, C]; backward: dy [N, C]
  void* out;  // forward: y [N, C]; backward: dx as x
  int64_t n, c, pixels;
  Dtype dtype;
  Layout layout;
};

cudaError_t launch_global_avg_pool2d(const GlobalAvgPoolParams& params, cudaStream_t stream);
cudaError_t launch_global_avg_pool2d_backward(const GlobalAvgPoolParams& params,
                                              cudaStream_t stream);

}  // namespace cnnkernels
