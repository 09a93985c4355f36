// Leaf ops of the first convolution of a network (3 input channels): cnnkernels::_conv2d_stem_cuda
// and _conv2d_stem_pool_cuda, with the 3x3/2 max-pool behind it.
#include <algorithm>

#include "common/tensor.h"
#include "conv2d/conv2d_stem.h"

namespace cnnkernels {
namespace {

StemInput input_type(const Tensor& x, const Tensor& weight) {
  if (x.scalar_type() == weight.scalar_type()) return StemInput::same;
  if (x.scalar_type() == ScalarType::Float) return StemInput::f32;
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Byte,
                  "x must have weight's dtype, float32 or uint8");
  return StemInput::u8;
}

// The arguments but for the pool, checked; x may be contiguous or channels_last.
StemParams params_of(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                     const Ints& stride, const Ints& padding, bool relu) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) == 3, "x must be [N, 3, H, W], got ", to_string(x));
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == 3, "weight must be [K, 3, R, S], got ",
                  to_string(weight));
  STD_TORCH_CHECK(stride.size() == 2 && stride[0] == stride[1], "stride must be one number");
  STD_TORCH_CHECK(padding.size() == 2 && std::min(padding[0], padding[1]) >= 0,
                  "padding must be two numbers of at least 0");
  check_same_device(x, weight, "weight");
  if (bias)
    STD_TORCH_CHECK(bias->scalar_type() == weight.scalar_type() && bias->is_contiguous() &&
                        bias->numel() == weight.size(0),
                    "bias must be [", weight.size(0), "] of weight's dtype, got ",
                    to_string(*bias));
  layout_of(x, "x");
  StemParams prm;
  for (int i = 0; i < 4; ++i) {
    prm.x_stride[i] = x.stride(i);
    prm.weight_stride[i] = weight.stride(i);
  }
  if (is_channels_last(x)) {  // a dimension of size 1 may carry any stride
    const int64_t nhwc[4] = {3 * x.size(2) * x.size(3), 1, 3 * x.size(3), 3};
    std::copy(nhwc, nhwc + 4, prm.x_stride);
  } else {
    prm.x_stride[3] = 1;
  }
  prm.n = x.size(0), prm.h = x.size(2), prm.w = x.size(3);
  prm.k = weight.size(0), prm.r = weight.size(2), prm.s = weight.size(3);
  prm.stride = stride[0], prm.pad_h = padding[0], prm.pad_w = padding[1];
  prm.relu = relu;
  prm.dtype = dtype_of(weight, "weight");
  prm.input = input_type(x, weight);
  prm.x = x.data_ptr(), prm.weight = weight.data_ptr();
  prm.bias = bias ? bias->data_ptr() : nullptr;
  return prm;
}

Tensor run(StemParams prm, const Tensor& x, const Tensor& weight) {
  const char* why_not = stem_params_why_not(prm);
  STD_TORCH_CHECK(why_not == nullptr, why_not ? why_not : "");
  DeviceGuard guard(x.get_device_index());
  Tensor y = empty_like_device(x, {prm.n, prm.k, prm.out_p(), prm.out_q()}, weight.scalar_type(),
                               Layout::nhwc);
  prm.y = y.data_ptr();
  STD_CUDA_CHECK(launch_conv2d_stem_sm90(prm, static_cast<cudaStream_t>(current_stream(x))));
  return y;
}

// x [N, 3, H, W] contiguous or channels_last, of weight's dtype, float32 or uint8; weight [K, 3, R,
// S] of any strides; bias [K] or none. Returns [N, K, P, Q] of weight's dtype in channels_last
// whatever x's layout is.
Tensor conv2d_stem_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        const Ints& stride, const Ints& padding, bool relu) {
  return run(params_of(x, weight, bias, stride, padding, relu), x, weight);
}

// The same, and max_pool2d(…, 3, 2, pool_padding, ceil_mode=…) of it: only that is written.
Tensor conv2d_stem_pool_cuda(const Tensor& x, const Tensor& weight,
                             const std::optional<Tensor>& bias, const Ints& stride,
                             const Ints& padding, bool relu, int64_t pool_padding, bool ceil_mode) {
  StemParams prm = params_of(x, weight, bias, stride, padding, relu);
  prm.pool = true, prm.pool_pad = static_cast<int>(pool_padding), prm.ceil_mode = ceil_mode;
  return run(prm, x, weight);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def(
      "_conv2d_stem_cuda(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, bool "
      "relu) -> Tensor");
  m.def(
      "_conv2d_stem_pool_cuda(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
      "bool relu, int pool_padding, bool ceil_mode) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CUDA, m) {
  m.impl("_conv2d_stem_cuda", TORCH_BOX(&conv2d_stem_cuda));
  m.impl("_conv2d_stem_pool_cuda", TORCH_BOX(&conv2d_stem_pool_cuda));
}

}  // namespace cnnkernels
