// relu(input + residual) and its backward on the CPU: leaf ops cnnkernels::_add_relu_cpu and
// cnnkernels::_relu_backward_mask_cpu. Flat memory, 8 elements to a mask byte; plain loops that the
// compiler vectorises (three function clones: baseline, AVX2, AVX-512), threads by torch.
#include "common/cpu_math.h"

namespace cnnkernels {
namespace {

// Elements [begin, end) of the flat tensors, begin a multiple of 8. fp16 and bf16 are summed in
// fp32 and rounded once before the comparison, as torch's add does.
template <class T>
CNNKERNELS_CLONES void add_relu_range(const T* a, const T* b, T* __restrict out, uint8_t* mask,
                                      int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    // A sum that rounds to zero is zero on either side of the test, so the unrounded sum decides.
    const float sum = to_f32(a[i]) + to_f32(b[i]);
    out[i] = from_f32<T>(sum <= 0.f ? 0.f : sum);  // NaN passes, as in torch.relu
  }
  if (!mask) return;
  for (int64_t i = begin; i < end; i += 8) {
    unsigned bits = 0;
    const int64_t count = std::min<int64_t>(8, end - i);
    for (int64_t e = 0; e < count; ++e) bits |= unsigned{!(to_f32(out[i + e]) <= 0.f)} << e;
    mask[i / 8] = static_cast<uint8_t>(bits);
  }
}

// grad_input = grad where the mask's bit is set, else 0, as integers: all ones or zeros, and AND.
template <class Bits>
CNNKERNELS_CLONES void backward_range(const Bits* grad, const uint8_t* mask,
                                      Bits* __restrict grad_input, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + 8 <= end; i += 8) {
    const uint32_t byte = mask[i >> 3];
    for (int e = 0; e < 8; ++e)
      grad_input[i + e] = grad[i + e] & static_cast<Bits>(-static_cast<int32_t>(byte >> e & 1));
  }
  for (; i < end; ++i)
    grad_input[i] = grad[i] & static_cast<Bits>(-static_cast<int32_t>(mask[i >> 3] >> (i & 7) & 1));
}

// Whole mask bytes to each thread; the grain keeps small tensors on one.
template <class F>
void for_chunks(int64_t numel, const F& f) {
  torch::stable::parallel_for(0, (numel + 7) / 8, 4096, [&](int64_t begin, int64_t end) {
    f(begin * 8, std::min(numel, end * 8));
  });
}

std::tuple<Tensor, Tensor> add_relu_cpu(const Tensor& input, const Tensor& residual,
                                        bool with_mask) {
  STD_TORCH_CHECK(
      input.numel() == residual.numel() && input.scalar_type() == residual.scalar_type(),
      "residual must have the input's shape and dtype; shapes ", to_string(input), " and ",
      to_string(residual));
  Tensor out = empty_same(input);
  const int64_t numel = input.numel();
  Tensor mask = empty_like_device(input, {with_mask ? (numel + 7) / 8 : 0}, ScalarType::Byte);
  auto* mask_data = with_mask ? static_cast<uint8_t*>(mask.data_ptr()) : nullptr;
  dispatch_cpu(dtype_of(input, "input"), [&](auto zero) {
    using T = decltype(zero);
    const auto* a = static_cast<const T*>(input.data_ptr());
    const auto* b = static_cast<const T*>(residual.data_ptr());
    auto* o = static_cast<T*>(out.data_ptr());
    for_chunks(numel, [&](int64_t begin, int64_t end) {
      // In cache-sized pieces: the mask's loop finds the output there.
      for (int64_t i = begin; i < end; i += 4096)
        add_relu_range(a, b, o, mask_data, i, std::min(end, i + 4096));
    });
  });
  return {out, mask};
}

Tensor relu_backward_mask_cpu(const Tensor& grad, const Tensor& mask) {
  STD_TORCH_CHECK(mask.numel() == (grad.numel() + 7) / 8,
                  "mask must have one bit per element of grad ", to_string(grad), ", got ",
                  mask.numel(), " bytes");
  Tensor grad_input = empty_same(grad);
  const auto* bits = static_cast<const uint8_t*>(mask.data_ptr());
  dispatch_cpu(dtype_of(grad, "grad"), [&](auto zero) {
    using T = decltype(zero);
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
    const auto* g = static_cast<const Bits*>(grad.data_ptr());
    auto* o = static_cast<Bits*>(grad_input.data_ptr());
    for_chunks(grad.numel(),
               [&](int64_t begin, int64_t end) { backward_range(g, bits, o, begin, end); });
  });
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def("_add_relu_cpu(Tensor input, Tensor residual, bool with_mask) -> (Tensor, Tensor)");
  m.def("_relu_backward_mask_cpu(Tensor grad, Tensor mask) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CPU, m) {
  m.impl("_add_relu_cpu", TORCH_BOX(&add_relu_cpu));
  m.impl("_relu_backward_mask_cpu", TORCH_BOX(&relu_backward_mask_cpu));
}

}  // namespace cnnkernels
