// relu(input + residual), optionally with a 1-bit mask for the backward pass, and that backward
// pass.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/types.h"

namespace cnnkernels {

struct AddReluParams {
  const void* input;     // [numel], dense, 16-byte aligned for the vector path
  const void* residual;  // [numel], same memory order as input
  void* out;             // [numel]
  uint8_t* mask;         // [ceil(numel / 8)] or nullptr; bit e of byte j: out[8j + e] > 0 or NaN
  int64_t numel;
  Dtype dtype;
};

struct ReluBackwardMaskParams {
  const void* grad;     // [numel], in the memory order of the forward output
  const uint8_t* mask;  // [ceil(numel / 8)]
  void* grad_input;     // [numel]
  int64_t numel;
  Dtype dtype;
};

cudaError_t launch_add_relu(const AddReluParams& params, cudaStream_t stream);
cudaError_t launch_relu_backward_mask(const ReluBackwardMaskParams& params, cudaStream_t stream);

}  // namespace cnnkernels
