// max_pool2d(lrn(relu?(x + bias?))) in one pass, LRN window 5, pool 3x3/2; backward channels_last.
#pragma once

#include <cuda_runtime_api.h>

#include "common/types.h"
#include "plan/lrn_pool.h"

namespace cnnkernels {

struct LrnPoolParams {
  const void* x;     // [N, C, H, W] or, channels_last, [N, H, W, C]
  const void* bias;  // [C] or nullptr
  void* y;           // [N, C, OH, OW] in x's layout
  uint8_t* offsets;  // as y, or nullptr
  LrnShape lrn;
  PoolShape pool;
  Dtype dtype;
  Layout layout;
};

struct LrnPoolBackwardParams {
  const void* x;           // [N, H, W, C]
  const void* bias;        // [C] or nullptr
  const void* dy;          // [N, OH, OW, C]
  const uint8_t* offsets;  // [N, OH, OW, C]
  void* dx;                // [N, H, W, C]
  LrnShape lrn;
  PoolShape pool;
  Dtype dtype;
};

cudaError_t launch_lrn_pool(const LrnPoolParams& params, cudaStream_t stream);
cudaError_t launch_lrn_pool_nchw(const LrnPoolParams& params, cudaStream_t stream);
cudaError_t launch_lrn_pool_backward(const LrnPoolBackwardParams& params, cudaStream_t stream);

}  // namespace cnnkernels
