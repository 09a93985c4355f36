// Window arguments of the pooling bindings: shape from torch's argument lists, checks, offsets.
#pragma once

#include "common/layouts.h"
#include "common/tensor.h"
#include "plan/pool.h"

namespace cnnkernels {

inline int checked_pair(const Ints& values, int i, int64_t least, const char* name) {
  STD_TORCH_CHECK(values.size() == 2, name, " must have 2 values, got ", values.size());
  STD_TORCH_CHECK(values[i] >= least && values[i] < (int64_t{1} << 31), name, " must be at least ",
                  least, ", got ", values[i]);
  return static_cast<int>(values[i]);
}

// size: [N, C, H, W]. oh and ow follow torch's rule.
inline PoolShape pool_shape(const Ints& size, const Ints& kernel, const Ints& stride,
                            const Ints& padding, const Ints& dilation, bool ceil_mode) {
  STD_TORCH_CHECK(size.size() == 4, "input_size must have 4 values, got ", size.size());
  STD_TORCH_CHECK(size[2] < (int64_t{1} << 31) && size[3] < (int64_t{1} << 31),
                  "height and width must be below 2^31");
  PoolShape s;
  s.n = size[0], s.c = size[1];
  s.h = static_cast<int>(size[2]), s.w = static_cast<int>(size[3]);
  s.kernel_h = checked_pair(kernel, 0, 1, "kernel"),
  s.kernel_w = checked_pair(kernel, 1, 1, "kernel");
  s.stride_h = checked_pair(stride, 0, 1, "stride"),
  s.stride_w = checked_pair(stride, 1, 1, "stride");
  s.pad_h = checked_pair(padding, 0, 0, "padding"),
  s.pad_w = checked_pair(padding, 1, 0, "padding");
  s.dilation_h = checked_pair(dilation, 0, 1, "dilation");
  s.dilation_w = checked_pair(dilation, 1, 1, "dilation");
  s.oh = static_cast<int>(
      plan::pooled_size(s.h, s.kernel_h, s.stride_h, s.pad_h, s.dilation_h, ceil_mode));
  s.ow = static_cast<int>(
      plan::pooled_size(s.w, s.kernel_w, s.stride_w, s.pad_w, s.dilation_w, ceil_mode));
  STD_TORCH_CHECK(s.n * s.c == 0 || (s.oh > 0 && s.ow > 0),
                  "kernel is larger than the padded input: input [", s.h, ", ", s.w, "], kernel [",
                  s.kernel_h, ", ", s.kernel_w, "], padding [", s.pad_h, ", ", s.pad_w, "]");
  return s;
}

// uint8, or int32 where the window has more than 255 positions; shape [0] if not wanted.
inline Tensor new_offsets(const Tensor& like, const PoolShape& s, Layout layout, bool wanted) {
  if (!wanted) return empty_like_device(like, {0}, ScalarType::Byte);
  const bool wide = int64_t{s.kernel_h} * s.kernel_w > 255;
  return empty_like_device(like, {s.n, s.c, s.oh, s.ow}, wide ? ScalarType::Int : ScalarType::Byte,
                           layout);
}

// grad and offsets agree with each other and with the shape; takes oh and ow from them, because
// the windows of the forward pass may have been counted in ceil mode.
inline void check_windows(PoolShape& s, const Tensor& grad, const Tensor& offsets) {
  check_same_device(grad, offsets, "offsets");
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == s.n && grad.size(1) == s.c,
                  "grad must be [N, C, OH, OW] for an input of N ", s.n, " and C ", s.c, ", got ",
                  to_string(grad));
  for (int d = 0; d < 4; ++d)
    STD_TORCH_CHECK(offsets.dim() == 4 && offsets.size(d) == grad.size(d),
                    "offsets must have grad's shape ", to_string(grad), ", got ",
                    to_string(offsets));
  const bool wide = int64_t{s.kernel_h} * s.kernel_w > 255;
  STD_TORCH_CHECK(offsets.scalar_type() == (wide ? ScalarType::Int : ScalarType::Byte),
                  "offsets must be ", wide ? "int32" : "uint8", " for a window of ", s.kernel_h,
                  " x ", s.kernel_w);
  const bool h_ok = grad.size(2) == s.oh || grad.size(2) == s.oh + 1;
  const bool w_ok = grad.size(3) == s.ow || grad.size(3) == s.ow + 1;
  STD_TORCH_CHECK(h_ok && w_ok, "grad has ", grad.size(2), " x ", grad.size(3),
                  " windows, the arguments give ", s.oh, " x ", s.ow, " (one more in ceil mode)");
  s.oh = static_cast<int>(grad.size(2));
  s.ow = static_cast<int>(grad.size(3));
}

}  // namespace cnnkernels
