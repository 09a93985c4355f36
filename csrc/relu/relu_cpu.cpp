// relu(input) with a 1-bit mask for its backward pass: leaf op cnnkernels::_relu_mask_cpu. Flat
// memory; its backward is add_relu's. Bit e of byte j: element 8j + e is > 0 or NaN.
#include "common/cpu_isa.h"

namespace cnnkernels {
namespace {

std::tuple<Tensor, Tensor> relu_mask_cpu(const Tensor& x) {
  STD_TORCH_CHECK(x.is_contiguous() || is_channels_last(x),
                  "x must be contiguous or channels_last, shape ", to_string(x));
  Tensor out = empty_same(x);
  const int64_t numel = x.numel();
  Tensor mask = empty_like_device(x, {(numel + 7) / 8}, ScalarType::Byte);
  auto* bits = static_cast<uint8_t*>(mask.data_ptr());
  dispatch_cpu(dtype_of(x, "x"), [&](auto zero) {
    using T = decltype(zero);
    const auto* in = static_cast<const T*>(x.data_ptr());
    auto* o = static_cast<T*>(out.data_ptr());
    for_blocks(numel, [=](auto isa, int64_t i, int64_t count) {
      using Isa = decltype(isa);
      float v[kLanes];
      load<Isa>(in + i, v, count);
      store_bits(Isa::positive(v), bits + (i >> 3), count);
      for (int e = 0; e < kLanes; ++e) v[e] = v[e] <= 0.f ? 0.f : v[e];  // NaN passes, as in torch
      store<Isa>(v, o + i, count);
    });
  });
  return {out, mask};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def("_relu_mask_cpu(Tensor x) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CPU, m) {
  m.impl("_relu_mask_cpu", TORCH_BOX(&relu_mask_cpu));
}

}  // namespace cnnkernels
