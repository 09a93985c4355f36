// First convolution of a network: 3 input channels, any layout, stride 1, 2 or 4, with bias and
// ReLU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/types.h"

namespace cnnkernels {

struct StemParams {
  const void* x;             // [N, 3, H, W], any strides
  const void* weight;        // [K, 3, R, S], any strides
  const void* bias;          // [K] or nullptr
  void* y;                   // [N, K, P, Q], channels_last
  int64_t x_stride[4];       // elements, (n, c, h, w)
  int64_t weight_stride[4];  // elements, (k, c, r, s)
  int n, h, w;               // input
  int k, r, s;               // filter
  int p, q;                  // output
  int stride, pad_h, pad_w;
  bool relu;
  Dtype dtype;  // of x, weight, bias and y: f16 or bf16
};

// Why no stem instance takes this problem, or nullptr.
const char* stem_why_not(const StemParams& params);
cudaError_t launch_conv2d_stem_sm90(const StemParams& params, cudaStream_t stream);

}  // namespace cnnkernels
