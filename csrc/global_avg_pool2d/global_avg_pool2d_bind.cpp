// Leaf ops cnnkernels::_global_avg_pool2d_cuda and cnnkernels::_global_avg_pool2d_backward_cuda.
#include "common/tensor.h"
#include "global_avg_pool2d/global_avg_pool2d.h"

namespace cnnkernels {
namespace {

// x: [N, C, H, W]. Returns [N, C, 1, 1].
Tensor global_avg_pool2d_cuda(const Tensor& x) {
  GlobalAvgPoolParams params{};
  params.layout = layout_of(x, "x");
  params.dtype = dtype_of(x, "x");
  params.n = x.size(0), params.c = x.size(1), params.pixels = x.size(2) * x.size(3);
  STD_TORCH_CHECK(params.pixels > 0, "x must have height and width above 0, got ", to_string(x));
  DeviceGuard guard(x.get_device_index());
  Tensor out = empty_like_device(x, {params.n, params.c, 1, 1}, x.scalar_type(), params.layout);
  params.in = x.data_ptr();
  params.out = out.data_ptr();
  STD_CUDA_CHECK(launch_global_avg_pool2d(params, static_cast<cudaStream_t>(current_stream(x))));
  return out;
}

// grad: [N, C, 1, 1]. Returns [N, C, H, W] in the layout asked for.
Tensor global_avg_pool2d_backward_cuda(const Tensor& grad, Ints input_size, bool channels_last) {
  STD_TORCH_CHECK(input_size.size() == 4, "input_size must have 4 values, got ", input_size.size());
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == input_size[0] &&
                      grad.size(1) == input_size[1] && grad.size(2) == 1 && grad.size(3) == 1,
                  "grad must be [N, C, 1, 1] for the input's N and C, got ", to_string(grad));
  layout_of(grad, "grad");
  GlobalAvgPoolParams params{};
  params.layout = channels_last ? Layout::nhwc : Layout::nchw;
  params.dtype = dtype_of(grad, "grad");
  params.n = input_size[0], params.c = input_size[1], params.pixels = input_size[2] * input_size[3];
  DeviceGuard guard(grad.get_device_index());
  Tensor dx = empty_like_device(grad, input_size, grad.scalar_type(), params.layout);
  params.in = grad.data_ptr();
  params.out = dx.data_ptr();
  STD_CUDA_CHECK(
      launch_global_avg_pool2d_backward(params, static_cast<cudaStream_t>(current_stream(grad))));
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def("_global_avg_pool2d_cuda(Tensor x) -> Tensor");
  m.def(
      "_global_avg_pool2d_backward_cuda(Tensor grad, int[] input_size, bool channels_last) -> "
      "Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CUDA, m) {
  m.impl("_global_avg_pool2d_cuda", TORCH_BOX(&global_avg_pool2d_cuda));
  m.impl("_global_avg_pool2d_backward_cuda", TORCH_BOX(&global_avg_pool2d_backward_cuda));
}

}  // namespace cnnkernels
