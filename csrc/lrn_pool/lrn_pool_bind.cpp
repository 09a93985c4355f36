// Leaf ops cnnkernels::_lrn_pool_cuda and cnnkernels::_lrn_pool_backward_cuda. Calls the fused
// kernel does not cover run the two ops' leaf ops one after the other, through the dispatcher.
#include <array>

#include "common/layouts.h"
#include "common/lrn_args.h"
#include "common/pool_args.h"
#include "lrn_pool/lrn_pool.h"

namespace cnnkernels {
namespace {

using torch::stable::detail::from;

template <class... Values>
StableIValue* call(const char* op, StableIValue* stack, const Values&... values) {
  int i = 0;
  ((stack[i++] = from(values)), ...);
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack, TORCH_ABI_VERSION));
  return stack;
}

Tensor result(StableIValue value) { return torch::stable::detail::to<Tensor>(value); }

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

bool fuses(const LrnShape& lrn, const PoolShape& pool, Dtype dtype, Layout layout, const Tensor& x,
           const void* bias) {
  const int vector = dtype == Dtype::f32 ? 4 : 8;
  const bool vectors = pool.c % vector == 0 && aligned(x.data_ptr()) && aligned(bias);
  return plan::lrn_pool_fuses(lrn, pool, dtype, layout, vectors) &&
         (layout == Layout::nchw || plan::lrn_pool_tile(pool, pool.c / vector).threads > 0);
}

// x: [N, C, H, W]; bias: [C] or none. Returns (out, offsets), [N, C, OH, OW] in x's layout; offsets
// has no elements unless with_offsets.
std::tuple<Tensor, Tensor> lrn_pool_cuda(const Tensor& x, std::optional<Tensor> bias, int64_t size,
                                         double alpha, double beta, double k, bool relu,
                                         Ints kernel, Ints stride, Ints padding, Ints dilation,
                                         bool ceil_mode, bool with_offsets) {
  LrnPoolParams params{};
  const Layout layout = params.layout = layout_of(x, "x");
  params.dtype = dtype_of(x, "x");
  params.lrn = lrn_shape(x, size, alpha, beta, k, relu);
  params.pool = pool_shape({x.size(0), x.size(1), x.size(2), x.size(3)}, kernel, stride, padding,
                           dilation, ceil_mode);
  params.bias = bias_data(x, bias);
  DeviceGuard guard(x.get_device_index());
  if (!fuses(params.lrn, params.pool, params.dtype, layout, x, params.bias)) {
    std::array<StableIValue, 8> stack;
    const Tensor normalised =
        result(*call("cnnkernels::_lrn_cuda", stack.data(), x, bias, size, alpha, beta, k, relu));
    call("cnnkernels::_max_pool2d_cuda", stack.data(), normalised, kernel, stride, padding,
         dilation, ceil_mode, false, with_offsets);
    return {result(stack[0]), result(stack[1])};
  }
  const PoolShape& s = params.pool;
  Tensor out = empty_like_device(x, {s.n, s.c, s.oh, s.ow}, x.scalar_type(), layout);
  Tensor offsets = new_offsets(x, s, layout, with_offsets);
  params.x = x.data_ptr();
  params.y = out.data_ptr();
  params.offsets = with_offsets ? static_cast<uint8_t*>(offsets.data_ptr()) : nullptr;
  STD_CUDA_CHECK(launch_lrn_pool(params, static_cast<cudaStream_t>(current_stream(x))));
  return {out, offsets};
}

// d/dx; the gradient of bias is its sum over N, H, W.
Tensor lrn_pool_backward_cuda(const Tensor& grad, const Tensor& x, std::optional<Tensor> bias,
                              const Tensor& offsets, int64_t size, double alpha, double beta,
                              double k, bool relu, Ints kernel, Ints stride, Ints padding,
                              Ints dilation) {
  const Ints input_size{x.size(0), x.size(1), x.size(2), x.size(3)};
  LrnPoolBackwardParams params{};
  const Layout layout = common_layout({&grad, &x, &offsets});
  params.dtype = dtype_of(x, "x");
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type(), "grad must have x's dtype");
  params.lrn = lrn_shape(x, size, alpha, beta, k, relu);
  params.pool = pool_shape(input_size, kernel, stride, padding, dilation, false);
  check_windows(params.pool, grad, offsets);
  params.bias = bias_data(x, bias);
  DeviceGuard guard(x.get_device_index());
  if (layout == Layout::nchw ||
      !fuses(params.lrn, params.pool, params.dtype, layout, x, params.bias) ||
      !aligned(grad.data_ptr()) || !aligned(offsets.data_ptr())) {
    std::array<StableIValue, 8> stack;
    const Tensor pooled = result(*call("cnnkernels::_max_pool2d_backward_cuda", stack.data(), grad,
                                       offsets, input_size, kernel, stride, padding, dilation));
    return result(*call("cnnkernels::_lrn_backward_cuda", stack.data(), pooled, x, bias, size,
                        alpha, beta, k, relu));
  }
  Tensor dx = empty_same(x);
  params.x = x.data_ptr();
  params.dy = grad.data_ptr();
  params.offsets = static_cast<const uint8_t*>(offsets.data_ptr());
  params.dx = dx.data_ptr();
  STD_CUDA_CHECK(launch_lrn_pool_backward(params, static_cast<cudaStream_t>(current_stream(x))));
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def(
      "_lrn_pool_cuda(Tensor x, Tensor? bias, int size, float alpha, float beta, float k, bool "
      "relu, int[2] kernel, int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode, bool "
      "with_offsets) -> (Tensor, Tensor)");
  m.def(
      "_lrn_pool_backward_cuda(Tensor grad, Tensor x, Tensor? bias, Tensor offsets, int size, "
      "float alpha, float beta, float k, bool relu, int[2] kernel, int[2] stride, int[2] padding, "
      "int[2] dilation) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CUDA, m) {
  m.impl("_lrn_pool_cuda", TORCH_BOX(&lrn_pool_cuda));
  m.impl("_lrn_pool_backward_cuda", TORCH_BOX(&lrn_pool_backward_cuda));
}

}  // namespace cnnkernels
