// relu(x) with a 1-bit mask for the backward pass (which is relu_backward_mask of add_relu).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/types.h"

namespace cnnkernels {

struct ReluMaskParams {
  const void* x;  // [numel], dense
  void* y;        // [numel]
  uint8_t* mask;  // [ceil(numel / 8)]; bit e of byte j: x[8j + e] > 0 or NaN
  int64_t numel;
  Dtype dtype;
};

cudaError_t launch_relu_mask(const ReluMaskParams& params, cudaStream_t stream);

}  // namespace cnnkernels
