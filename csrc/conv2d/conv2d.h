// 2-D convolution with bias, residual and ReLU on Hopper's tensor cores; NHWC in and out.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/types.h"
#include "plan/conv_plan.h"

namespace cnnkernels {

struct ConvParams {
  plan::ConvProblem problem;
  const void* input;     // [N, H, W, C], input_pitch channels between pixels
  const void* weight;    // [K, R, S, C / groups], dense
  const void* bias;      // [K] of the input's type, or nullptr
  const void* residual;  // [N, P, Q, K], dense, or nullptr
  void* output;          // [N, P, Q, K] (pool: P / 2, Q / 2), output_pitch channels between pixels
  int64_t output_pitch;  // >= K; more where the output is a slice of a wider tensor
  bool relu;
  int64_t input_pitch = 0;  // 0: C; more where the input is a slice of a wider tensor
  // problem.shortcut_c > 0 (igemm): [N, H2, W2, C2] and [K, C2], added as a 1x1 convolution.
  const void* shortcut_input = nullptr;
  const void* shortcut_weight = nullptr;
  int64_t shortcut_pitch = 0;  // 0: C2
  // problem.two_outputs (igemm): output channels from `split` on go to a second tensor, whose
  // channel 0 is channel `split`.
  void* second_output = nullptr;
  int64_t second_pitch = 0;
  int split = 0;
  // Start before the previous kernel of the stream has ended (programmatic dependent launch).
  bool early_start = false;
};

// Runs params.problem with `instance` (nullptr: the planner's choice for every group).
cudaError_t launch_conv2d_sm90(const ConvParams& params, const plan::Instance* instance,
                               cudaStream_t stream);

// One group (params.problem.groups == 1; pointers at its first channel) as planned, by family.
// residual_pitch: channels between residual pixels.
struct ConvGroup {
  ConvParams params;
  int64_t input_pitch, residual_pitch;
  plan::ConvPlan plan;
};
cudaError_t launch_conv2d_group(const ConvGroup& group, cudaStream_t stream);
cudaError_t launch_conv2d_igemm(const ConvGroup& group, cudaStream_t stream);
cudaError_t launch_conv2d_igemm_pingpong(const ConvGroup& group, cudaStream_t stream);
cudaError_t launch_conv2d_igemm_split(const ConvGroup& group, cudaStream_t stream);
cudaError_t launch_conv2d_halo_res(const ConvGroup& group, cudaStream_t stream);
cudaError_t launch_conv2d_halo_stream(const ConvGroup& group, cudaStream_t stream);

}  // namespace cnnkernels
