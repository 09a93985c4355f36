// relu(input + residual) and its backward on the CPU: leaf ops cnnkernels::_add_relu_cpu and
// cnnkernels::_relu_backward_mask_cpu. Flat memory, 8 elements to a mask byte, blocks of kLanes
// elements; threads by torch.
#include "common/cpu_isa.h"

namespace cnnkernels {
namespace {

std::tuple<Tensor, Tensor> add_relu_cpu(const Tensor& input, const Tensor& residual,
                                        bool with_mask) {
  STD_TORCH_CHECK(
      input.numel() == residual.numel() && input.scalar_type() == residual.scalar_type(),
      "residual must have the input's shape and dtype; shapes ", to_string(input), " and ",
      to_string(residual));
  Tensor out = empty_same(input);
  const int64_t numel = input.numel();
  Tensor mask = empty_like_device(input, {with_mask ? (numel + 7) / 8 : 0}, ScalarType::Byte);
  uint8_t* bits = with_mask ? static_cast<uint8_t*>(mask.data_ptr()) : nullptr;
  dispatch_cpu(dtype_of(input, "input"), [&](auto zero) {
    using T = decltype(zero);
    const auto* a = static_cast<const T*>(input.data_ptr());
    const auto* b = static_cast<const T*>(residual.data_ptr());
    auto* o = static_cast<T*>(out.data_ptr());
    // fp16 and bf16 are summed in fp32 and rounded once, as torch's add does. No sum of two 16-bit
    // numbers rounds to zero, so the unrounded sum decides.
    for_blocks(numel, [=](auto isa, int64_t i, int64_t count) {
      using Isa = decltype(isa);
      float sum[kLanes], other[kLanes];
      load<Isa>(a + i, sum, count);
      load<Isa>(b + i, other, count);
      for (int e = 0; e < kLanes; ++e) sum[e] += other[e];
      if (bits) store_bits(Isa::positive(sum), bits + (i >> 3), count);
      for (int e = 0; e < kLanes; ++e) sum[e] = sum[e] <= 0.f ? 0.f : sum[e];  // NaN passes
      store<Isa>(sum, o + i, count);
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
    for_blocks(grad.numel(), [=](auto isa, int64_t i, int64_t count) {
      const unsigned kept = load_bits(bits + (i >> 3), count);
      if (count == kLanes) return decltype(isa)::keep(kept, g + i, o + i);
      for (int64_t e = 0; e < count; ++e) o[i + e] = kept >> e & 1 ? g[i + e] : 0;
    });
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
