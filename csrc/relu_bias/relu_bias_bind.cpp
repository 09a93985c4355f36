// Leaf op cnnkernels::_relu_bias_backward_cuda.
#include "common/layouts.h"
#include "relu_bias/relu_bias.h"

namespace cnnkernels {
namespace {

// grad, y: not empty, of one shape [N, C, H, W], dtype and layout. Returns (dx, dbias [C]).
std::tuple<Tensor, Tensor> relu_bias_backward_cuda(const Tensor& grad, const Tensor& y) {
  check_same_device(grad, y, "y");
  const Layout layout = common_layout({&grad, &y});
  bool same = grad.scalar_type() == y.scalar_type() && grad.numel() > 0;
  for (int64_t d = 0; d < 4; ++d) same = same && grad.size(d) == y.size(d);
  STD_TORCH_CHECK(same, "y must have grad's shape and dtype, and not be empty; shapes ",
                  to_string(y), " and ", to_string(grad));
  DeviceGuard guard(grad.get_device_index());
  const int64_t n = grad.size(0), c = grad.size(1), pixels = grad.size(2) * grad.size(3);
  const int64_t slices = relu_bias_slices(n, c, pixels, layout);
  Tensor dx =
      empty_like_device(grad, {n, c, grad.size(2), grad.size(3)}, grad.scalar_type(), layout);
  Tensor dbias = empty_like_device(grad, {c}, grad.scalar_type());
  Tensor partial = empty_like_device(grad, {slices, c}, ScalarType::Float);
  ReluBiasParams params{grad.data_ptr(),
                        y.data_ptr(),
                        dx.data_ptr(),
                        dbias.data_ptr(),
                        static_cast<float*>(partial.data_ptr()),
                        n,
                        c,
                        pixels,
                        slices,
                        dtype_of(grad, "grad"),
                        layout};
  STD_CUDA_CHECK(
      launch_relu_bias_backward(params, static_cast<cudaStream_t>(current_stream(grad))));
  return {dx, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def("_relu_bias_backward_cuda(Tensor grad, Tensor y) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CUDA, m) {
  m.impl("_relu_bias_backward_cuda", TORCH_BOX(&relu_bias_backward_cuda));
}

}  // namespace cnnkernels
