// Max-pool, forward and backward. Offsets: the position kh * kernel_w + kw of the maximum in the
// unclipped window, one byte (int32 where the window has over 255 positions); kNoGradient marks a
// window that sends no gradient.
#pragma once

#include <cuda_runtime_api.h>

#include "common/types.h"
#include "plan/pool.h"

namespace cnnkernels {

constexpr int kNoGradient = 255;  // uint8; int32 offsets use -1

inline bool wide_offsets(const PoolShape& s) { return int64_t{s.kernel_h} * s.kernel_w > 255; }

struct MaxPoolParams {
  const void* x;  // [N, C, H, W]
  void* y;        // [N, C, OH, OW]
  void* offsets;  // [N, C, OH, OW] or nullptr
  PoolShape shape;
  Dtype dtype;
  Layout layout;
  bool relu;  // max_pool2d(relu(x))
};

struct MaxPoolBackwardParams {
  const void* dy;       // [N, C, OH, OW]
  const void* offsets;  // [N, C, OH, OW]
  void* dx;             // [N, C, H, W]
  PoolShape shape;
  Dtype dtype;
  Layout layout;
};

cudaError_t launch_max_pool2d(const MaxPoolParams& params, cudaStream_t stream);
cudaError_t launch_max_pool2d_backward(const MaxPoolBackwardParams& params, cudaStream_t stream);

// One family each; launch_max_pool2d chooses.
cudaError_t launch_max_pool2d_nhwc(const MaxPoolParams& params, cudaStream_t stream);
cudaError_t launch_max_pool2d_nchw(const MaxPoolParams& params, cudaStream_t stream);
cudaError_t launch_max_pool2d_any(const MaxPoolParams& params, bool vectors, cudaStream_t stream);
cudaError_t launch_max_pool2d_backward_nhwc(const MaxPoolBackwardParams& params, cudaStream_t);
cudaError_t launch_max_pool2d_backward_nchw(const MaxPoolBackwardParams& params, cudaStream_t);
cudaError_t launch_max_pool2d_backward_any(const MaxPoolBackwardParams& params, cudaStream_t);

}  // namespace cnnkernels
