// max_pool2d(lrn(relu?(x + bias?))) in one pass, channels_last, LRN window 5, pool 3x3/2.
#pragma once

#include <cuda_runtime_api.h>

#include "common/types.h"
#include "plan/lrn_pool.h"

namespace cnnkernels {

struct LrnPoolParams {
  const void* x;     // [N, H, W, C]
  const void* bias;  // [C] or nullptr
  void* y;           // [N, OH, OW, C]
  uint8_t* offsets;  // [N, OH, OW, C], or nullptr
  LrnShape lrn;
  PoolShape pool;
  Dtype dtype;
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
cudaError_t launch_lrn_pool_backward(const LrnPoolBackwardParams& params, cudaStream_t stream);

}  // namespace cnnkernels
