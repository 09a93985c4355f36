// First convolution of a network: 3 input channels, any layout, stride 1, 2 or 4, with bias, ReLU
// and, where asked for, the 3x3/2 max-pool behind them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "plan/conv_stem.h"

namespace cnnkernels {

struct StemParams : plan::StemProblem {
  const void* x = nullptr;        // [N, 3, H, W], contiguous or channels_last
  const void* weight = nullptr;   // [K, 3, R, S], any strides
  const void* bias = nullptr;     // [K] or nullptr
  void* y = nullptr;              // [N, K, out_p, out_q], channels_last
  int64_t x_stride[4] = {};       // elements, (n, c, h, w)
  int64_t weight_stride[4] = {};  // elements, (k, c, r, s)
  bool relu = true;
};

// Why no stem instance takes these arguments, or nullptr.
const char* stem_params_why_not(const StemParams& params);
cudaError_t launch_conv2d_stem_sm90(const StemParams& params, cudaStream_t stream);
// The kernels that no GPU has run yet (plan::StemProblem::verified); called by the launch above.
cudaError_t launch_conv2d_stem_any_sm90(const StemParams& params, cudaStream_t stream);

}  // namespace cnnkernels
