// Leaf ops cnnkernels::_lrn_cuda and cnnkernels::_lrn_backward_cuda.
#include "common/layouts.h"
#include "common/lrn_args.h"
#include "lrn/lrn.h"

namespace cnnkernels {
namespace {

// x: [N, C, H, W]; bias: [C] or none. Returns y in x's shape and layout.
Tensor lrn_cuda(const Tensor& x, std::optional<Tensor> bias, int64_t size, double alpha,
                double beta, double k, bool relu) {
  LrnParams params{};
  params.layout = layout_of(x, "x");
  params.dtype = dtype_of(x, "x");
  params.shape = lrn_shape(x, size, alpha, beta, k, relu);
  params.bias = bias_data(x, bias);
  DeviceGuard guard(x.get_device_index());
  Tensor y = empty_same(x);
  params.x = x.data_ptr();
  params.out = y.data_ptr();
  STD_CUDA_CHECK(launch_lrn(params, static_cast<cudaStream_t>(current_stream(x))));
  return y;
}

// d/dx; the gradient of bias is its sum over N, H, W.
Tensor lrn_backward_cuda(const Tensor& grad, const Tensor& x, std::optional<Tensor> bias,
                         int64_t size, double alpha, double beta, double k, bool relu) {
  check_like(x, grad);
  LrnParams params{};
  params.layout = common_layout({&grad, &x});
  params.dtype = dtype_of(x, "x");
  params.shape = lrn_shape(x, size, alpha, beta, k, relu);
  params.bias = bias_data(x, bias);
  DeviceGuard guard(x.get_device_index());
  Tensor dx = empty_same(x);
  params.x = x.data_ptr();
  params.dy = grad.data_ptr();
  params.out = dx.data_ptr();
  STD_CUDA_CHECK(launch_lrn_backward(params, static_cast<cudaStream_t>(current_stream(x))));
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def(
      "_lrn_cuda(Tensor x, Tensor? bias, int size, float alpha, float beta, float k, bool relu) "
      "-> Tensor");
  m.def(
      "_lrn_backward_cuda(Tensor grad, Tensor x, Tensor? bias, int size, float alpha, float beta, "
      "float k, bool relu) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CUDA, m) {
  m.impl("_lrn_cuda", TORCH_BOX(&lrn_cuda));
  m.impl("_lrn_backward_cuda", TORCH_BOX(&lrn_backward_cuda));
}

}  // namespace cnnkernels
