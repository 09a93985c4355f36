// Leaf ops cnnkernels::_max_pool2d_cuda and cnnkernels::_max_pool2d_backward_cuda.
#include "common/pool_args.h"
#include "common/tensor.h"
#include "max_pool2d/max_pool2d.h"

namespace cnnkernels {
namespace {

// x: [N, C, H, W]. Returns (out, offsets), both [N, C, OH, OW] in x's layout; offsets has no
// elements unless with_offsets.
std::tuple<Tensor, Tensor> max_pool2d_cuda(const Tensor& x, Ints kernel, Ints stride, Ints padding,
                                           Ints dilation, bool ceil_mode, bool relu,
                                           bool with_offsets) {
  MaxPoolParams params{};
  params.layout = layout_of(x, "x");
  params.dtype = dtype_of(x, "x");
  params.shape = pool_shape({x.size(0), x.size(1), x.size(2), x.size(3)}, kernel, stride, padding,
                            dilation, ceil_mode);
  params.relu = relu;
  const PoolShape& s = params.shape;
  DeviceGuard guard(x.get_device_index());
  Tensor out = empty_like_device(x, {s.n, s.c, s.oh, s.ow}, x.scalar_type(), params.layout);
  Tensor offsets = new_offsets(x, s, params.layout, with_offsets);
  params.x = x.data_ptr();
  params.y = out.data_ptr();
  params.offsets = with_offsets ? offsets.data_ptr() : nullptr;
  STD_CUDA_CHECK(launch_max_pool2d(params, static_cast<cudaStream_t>(current_stream(x))));
  return {out, offsets};
}

Tensor max_pool2d_backward_cuda(const Tensor& grad, const Tensor& offsets, Ints input_size,
                                Ints kernel, Ints stride, Ints padding, Ints dilation) {
  MaxPoolBackwardParams params{};
  params.layout = common_layout({&grad, &offsets});
  params.dtype = dtype_of(grad, "grad");
  params.shape = pool_shape(input_size, kernel, stride, padding, dilation, false);
  check_windows(params.shape, grad, offsets);
  const PoolShape& s = params.shape;
  DeviceGuard guard(grad.get_device_index());
  Tensor dx = empty_like_device(grad, {s.n, s.c, s.h, s.w}, grad.scalar_type(), params.layout);
  params.dy = grad.data_ptr();
  params.offsets = offsets.data_ptr();
  params.dx = dx.data_ptr();
  STD_CUDA_CHECK(
      launch_max_pool2d_backward(params, static_cast<cudaStream_t>(current_stream(grad))));
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def(
      "_max_pool2d_cuda(Tensor x, int[2] kernel, int[2] stride, int[2] padding, int[2] dilation, "
      "bool ceil_mode, bool relu, bool with_offsets) -> (Tensor, Tensor)");
  m.def(
      "_max_pool2d_backward_cuda(Tensor grad, Tensor offsets, int[] input_size, int[2] kernel, "
      "int[2] stride, int[2] padding, int[2] dilation) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CUDA, m) {
  m.impl("_max_pool2d_cuda", TORCH_BOX(&max_pool2d_cuda));
  m.impl("_max_pool2d_backward_cuda", TORCH_BOX(&max_pool2d_backward_cuda));
}

}  // namespace cnnkernels
