// 2-D convolution with bias, residual and ReLU on Hopper's tensor cores; NHWC in and out.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/types.h"
#include "plan/conv_plan.h"

namespace cnnkernels {

struct ConvParams {
  plan::ConvProblem problem;
  const void* input;     // [N, H, W, C], dense
  const void* weight;    // [K, R, S, C / groups], dense
  const void* bias;      // [K] of the input's type, or nullptr
  const void* residual;  // [N, P, Q, K], dense, or nullptr
  void* output;          // [N, P, Q, K] (pool: P / 2, Q / 2), output_pitch channels between pixels
  int64_t output_pitch;  // >= K; more where the output is a slice of a wider tensor
  bool relu;
};

// Runs params.problem with `instance` (nullptr: the planner's choice for every group).
cudaError_t launch_conv2d_sm90(const ConvParams& params, const plan::Instance* instance,
                               cudaStream_t stream);

// One group (params.problem.groups == 1; pointers at its first channel), by family. input_pitch:
// channels between input pixels. residual_pitch: between residual pixels.
struct ConvGroup {
  ConvParams params;
  int64_t input_pitch, residual_pitch;
  plan::ConvPlan plan;
};
cudaError_t launch_conv2d_igemm(const ConvGroup& group, cudaStream_t stream);
cudaError_t launch_conv2d_halo_res(const ConvGroup& group, cudaStream_t stream);
cudaError_t launch_conv2d_halo_stream(const ConvGroup& group, cudaStream_t stream);

}  // namespace cnnkernels
