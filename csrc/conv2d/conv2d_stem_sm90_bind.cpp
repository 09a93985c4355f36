// Leaf op cnnkernels::_conv2d_stem_cuda: the first convolution of a network (3 input channels).
#include <algorithm>

#include "common/tensor.h"
#include "conv2d/conv2d_stem.h"

namespace cnnkernels {
namespace {

// x [N, 3, H, W] contiguous or channels_last, weight [K, 3, R, S] of any strides, bias [K] or none.
// Returns [N, K, P, Q] in channels_last whatever x's layout is.
Tensor conv2d_stem_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        const Ints& stride, const Ints& padding, bool relu) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) == 3, "x must be [N, 3, H, W], got ", to_string(x));
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == 3, "weight must be [K, 3, R, S], got ",
                  to_string(weight));
  STD_TORCH_CHECK(stride.size() == 2 && stride[0] == stride[1], "stride must be one number");
  STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type(), "weight must have x's dtype");
  check_same_device(x, weight, "weight");
  if (bias)
    STD_TORCH_CHECK(bias->scalar_type() == x.scalar_type() && bias->is_contiguous() &&
                        bias->numel() == weight.size(0),
                    "bias must be [", weight.size(0), "] of x's dtype, got ", to_string(*bias));
  layout_of(x, "x");
  StemParams prm{};
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
  prm.p = (prm.h + 2 * prm.pad_h - prm.r) / prm.stride + 1;
  prm.q = (prm.w + 2 * prm.pad_w - prm.s) / prm.stride + 1;
  STD_TORCH_CHECK(prm.p > 0 && prm.q > 0, "the filter exceeds the padded input ", to_string(x));
  prm.relu = relu;
  prm.dtype = dtype_of(x, "x");
  const char* why_not = stem_why_not(prm);
  STD_TORCH_CHECK(why_not == nullptr, why_not ? why_not : "");

  DeviceGuard guard(x.get_device_index());
  Tensor y = empty_like_device(x, {prm.n, prm.k, prm.p, prm.q}, x.scalar_type(), Layout::nhwc);
  prm.x = x.data_ptr(), prm.weight = weight.data_ptr(), prm.y = y.data_ptr();
  prm.bias = bias ? bias->data_ptr() : nullptr;
  STD_CUDA_CHECK(launch_conv2d_stem_sm90(prm, static_cast<cudaStream_t>(current_stream(x))));
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def(
      "_conv2d_stem_cuda(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, bool "
      "relu) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CUDA, m) {
  m.impl("_conv2d_stem_cuda", TORCH_BOX(&conv2d_stem_cuda));
}

}  // namespace cnnkernels
