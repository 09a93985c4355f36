// A convolution as the planner sees it: sizes, output size, bytes, FLOPs. Host arithmetic only.
#pragma once

#include <array>
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
  // A second input, whose 1x1 convolution is added in the same sums: a projection shortcut.
  int shortcut_c = 0, shortcut_h = 0, shortcut_w = 0;  // shortcut_c == 0: none
  int shortcut_stride_h = 1, shortcut_stride_w = 1;
  bool residual = false;
  bool two_outputs = false;   // the output channels go to two tensors
  bool pool = false;          // 2x2 max-pool of stride 2 after the ReLU, odd edges dropped
  Dtype dtype = Dtype::bf16;  // f32 runs as tf32

  int p() const { return (h + 2 * pad_h - dilation_h * (r - 1) - 1) / stride_h + 1; }
  int q() const { return (w + 2 * pad_w - dilation_w * (s - 1) - 1) / stride_w + 1; }
  int64_t pixels() const { return n * p() * q(); }
  int element_bytes() const { return dtype == Dtype::f32 ? 4 : 2; }

  bool pointwise() const {
    return r == 1 && s == 1 && stride_h == 1 && stride_w == 1 && pad_h == 0 && pad_w == 0;
  }

  // The shortcut's convolution by itself: its output is this one's.
  ConvProblem shortcut() const {
    ConvProblem x;
    x.n = n, x.c = shortcut_c, x.h = shortcut_h, x.w = shortcut_w, x.k = k;
    x.stride_h = shortcut_stride_h, x.stride_w = shortcut_stride_w, x.dtype = dtype;
    return x;
  }

  // Of one group: groups run one after another as convolutions over channel slices.
  ConvProblem group() const {
    ConvProblem g = *this;
    g.c /= groups, g.k /= groups, g.groups = 1;
    return g;
  }

  // 2 per multiply-accumulate of the direct method.
  double flops() const { return 2.0 * pixels() * k * (c / groups * r * s + shortcut_c); }

  // Inputs (of the shortcut's, the pixels it takes), filters and residual read once, the output
  // written once.
  double bytes() const {
    return (1.0 * n * h * w * c + 1.0 * k * (c / groups * r * s + shortcut_c) +
            1.0 * pixels() * shortcut_c +
            (residual ? 2.0
             : pool   ? 0.25
                      : 1.0) *
                pixels() * k) *
           element_bytes();
  }
};

// Everything a plan depends on, as words to hash and compare.
using ProblemKey = std::array<uint64_t, 12>;
inline ProblemKey problem_key(const ConvProblem& x) {
  auto two = [](int a, int b) { return uint64_t(uint32_t(a)) << 32 | uint32_t(b); };
  return {static_cast<uint64_t>(x.n),
          two(x.c, x.h),
          two(x.w, x.k),
          two(x.r, x.s),
          two(x.stride_h, x.stride_w),
          two(x.pad_h, x.pad_w),
          two(x.dilation_h, x.dilation_w),
          two(x.groups, x.shortcut_c),
          two(x.shortcut_h, x.shortcut_w),
          two(x.shortcut_stride_h, x.shortcut_stride_w),
          two(x.residual * 2 + x.two_outputs, x.pool),
          static_cast<uint64_t>(x.dtype)};
}

}  // namespace cnnkernels::plan
