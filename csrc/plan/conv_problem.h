// A convolution as the planner sees it: sizes, output size, bytes, FLOPs. Host arithmetic only.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace cnnkernels::plan {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct ConvProblem {
  int64_t n = 0;
  int c = 0, h = 0, w = 0;  // input channels, height, width
  int k = 0, r = 1, s = 1;  // output channels, filter height and width
  int stride_h = 1, stride_w = 1;
  int pad_h = 0, pad_w = 0;
  int dilation_h = 1, dilation_w = 1;
  int groups = 1;
  bool residual = false;
  bool pool = false;          // 2x2 max-pool of stride 2 after the ReLU, odd edges dropped
  Dtype dtype = Dtype::bf16;  // f32 runs as tf32

  int p() const { return (h + 2 * pad_h - dilation_h * (r - 1) - 1) / stride_h + 1; }
  int q() const { return (w + 2 * pad_w - dilation_w * (s - 1) - 1) / stride_w + 1; }
  int64_t pixels() const { return n * p() * q(); }
  int element_bytes() const { return dtype == Dtype::f32 ? 4 : 2; }

  bool pointwise() const {
    return r == 1 && s == 1 && stride_h == 1 && stride_w == 1 && pad_h == 0 && pad_w == 0;
  }

  // Of one group: groups run one after another as convolutions over channel slices.
  ConvProblem group() const {
    ConvProblem g = *this;
    g.c /= groups, g.k /= groups, g.groups = 1;
    return g;
  }

  // 2 per multiply-accumulate of the direct method.
  double flops() const { return 2.0 * pixels() * k * (c / groups) * r * s; }

  // Input, filter, residual read once and the output written once.
  double bytes() const {
    return (1.0 * n * h * w * c + 1.0 * k * (c / groups) * r * s +
            (residual ? 2.0
             : pool   ? 0.25
                      : 1.0) *
                pixels() * k) *
           element_bytes();
  }
};

}  // namespace cnnkernels::plan
