// Leaf ops cnnkernels::_add_relu_cuda and cnnkernels::_relu_backward_mask_cuda.
#include "add_relu/add_relu.h"
#include "common/tensor.h"

namespace cnnkernels {
namespace {

void check_same(const Tensor& input, const Tensor& other, const char* name) {
  check_same_device(input, other, name);
  bool same = input.dim() == other.dim() && input.scalar_type() == other.scalar_type();
  for (int64_t d = 0; same && d < input.dim(); ++d)
    same = input.size(d) == other.size(d) &&
           (input.size(d) == 1 || input.stride(d) == other.stride(d));
  STD_TORCH_CHECK(same, name, " must have the input's shape, strides and dtype; shapes ",
                  to_string(input), " and ", to_string(other));
}

// input, residual: same dense memory order. Returns (out, mask); mask is empty unless with_mask.
std::tuple<Tensor, Tensor> add_relu_cuda(const Tensor& input, const Tensor& residual,
                                         bool with_mask) {
  check_same(input, residual, "residual");
  DeviceGuard guard(input.get_device_index());
  Tensor out = empty_same(input);
  const int64_t mask_bytes = with_mask ? (input.numel() + 7) / 8 : 0;
  Tensor mask = empty_like_device(input, {mask_bytes}, ScalarType::Byte);
  AddReluParams params{
      input.data_ptr(), residual.data_ptr(),
      out.data_ptr(),   with_mask ? static_cast<uint8_t*>(mask.data_ptr()) : nullptr,
      input.numel(),    dtype_of(input, "input")};
  STD_CUDA_CHECK(launch_add_relu(params, static_cast<cudaStream_t>(current_stream(input))));
  return {out, mask};
}

Tensor relu_backward_mask_cuda(const Tensor& grad, const Tensor& mask) {
  check_same_device(grad, mask, "mask");
  STD_TORCH_CHECK(mask.numel() == (grad.numel() + 7) / 8,
                  "mask must have one bit per element of grad ", to_string(grad), ", got ",
                  mask.numel(), " bytes");
  DeviceGuard guard(grad.get_device_index());
  Tensor grad_input = empty_same(grad);
  ReluBackwardMaskParams params{grad.data_ptr(), static_cast<const uint8_t*>(mask.data_ptr()),
                                grad_input.data_ptr(), grad.numel(), dtype_of(grad, "grad")};
  STD_CUDA_CHECK(
      launch_relu_backward_mask(params, static_cast<cudaStream_t>(current_stream(grad))));
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def("_add_relu_cuda(Tensor input, Tensor residual, bool with_mask) -> (Tensor, Tensor)");
  m.def("_relu_backward_mask_cuda(Tensor grad, Tensor mask) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CUDA, m) {
  m.impl("_add_relu_cuda", TORCH_BOX(&add_relu_cuda));
  m.impl("_relu_backward_mask_cuda", TORCH_BOX(&relu_backward_mask_cuda));
}

}  // namespace cnnkernels
