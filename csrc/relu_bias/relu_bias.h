// Backward of y = relu(x + bias) in one pass: dx = dy where y is open, and dbias = dx summed over
// images and pixels. Two stages with a fixed order of additions, so results repeat bit by bit.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "common/types.h"

namespace cnnkernels {

struct ReluBiasParams {
  const void* grad;  // [N, C, pixels] or, channels_last, [N, pixels, C]
  const void* y;     // as grad: the ReLU's output
  void* dx;          // as grad
  void* dbias;       // [C]
  float* partial;    // [slices, C]: scratch
  int64_t n, c, pixels, slices;
  Dtype dtype;
  Layout layout;
};

// How many parts the N * pixels terms of a channel are cut into: at least 4096 terms each over the
// block's threads, and some 2,000 blocks in all where there is work for them. Depends on the sizes
// alone: the same sums on every GPU.
inline int64_t relu_bias_slices(int64_t n, int64_t c, int64_t pixels, Layout layout) {
  const int64_t terms = n * pixels;
  const int64_t columns = layout == Layout::nhwc ? (c + 511) / 512 : c;  // blocks beside each other
  const int64_t channels = layout == Layout::nhwc ? std::min<int64_t>(c, 512) : 1;
  const int64_t useful = (terms * channels + 16383) / 16384;
  return std::max<int64_t>(1, std::min(useful, std::max<int64_t>(1, 2048 / columns)));
}

cudaError_t launch_relu_bias_backward(const ReluBiasParams& params, cudaStream_t stream);

}  // namespace cnnkernels
