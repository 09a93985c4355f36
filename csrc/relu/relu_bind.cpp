// Leaf op cnnkernels::_relu_mask_cuda.
#include "common/tensor.h"
#include "relu/relu.h"

namespace cnnkernels {
namespace {

// x: dense, any rank. Returns (relu(x), mask), the mask uint8 of ceil(numel / 8) bytes in x's
// memory order.
std::tuple<Tensor, Tensor> relu_mask_cuda(const Tensor& x) {
  DeviceGuard guard(x.get_device_index());
  Tensor y = empty_same(x);
  Tensor mask = empty_like_device(x, {(x.numel() + 7) / 8}, ScalarType::Byte);
  ReluMaskParams params{x.data_ptr(), y.data_ptr(), static_cast<uint8_t*>(mask.data_ptr()),
                        x.numel(), dtype_of(x, "x")};
  STD_CUDA_CHECK(launch_relu_mask(params, static_cast<cudaStream_t>(current_stream(x))));
  return {y, mask};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def("_relu_mask_cuda(Tensor x) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CUDA, m) {
  m.impl("_relu_mask_cuda", TORCH_BOX(&relu_mask_cuda));
}

}  // namespace cnnkernels
