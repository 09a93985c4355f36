// relu(input) with a 1-bit mask for its backward pass: leaf op cnnkernels::_relu_mask_cpu. Flat
// memory; its backward is add_relu's. Bit e of byte j: element 8j + e is > 0 or NaN.
#include "common/cpu_math.h"

namespace cnnkernels {
namespace {

template <class T>
CNNKERNELS_CLONES void relu_range(const T* x, T* __restrict out, uint8_t* __restrict mask,
                                  int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const float v = to_f32(x[i]);
    out[i] = from_f32<T>(v <= 0.f ? 0.f : v);  // NaN passes, as in torch.relu
  }
  for (int64_t i = begin; i < end; i += 8) {
    unsigned bits = 0;
    const int64_t count = std::min<int64_t>(8, end - i);
    for (int64_t e = 0; e < count; ++e) bits |= unsigned{!(to_f32(x[i + e]) <= 0.f)} << e;
    mask[i / 8] = static_cast<uint8_t>(bits);
  }
}

std::tuple<Tensor, Tensor> relu_mask_cpu(const Tensor& x) {
  STD_TORCH_CHECK(x.is_contiguous() || is_channels_last(x),
                  "x must be contiguous or channels_last, shape ", to_string(x));
  Tensor out = empty_same(x);
  const int64_t numel = x.numel(), bytes = (numel + 7) / 8;
  Tensor mask = empty_like_device(x, {bytes}, ScalarType::Byte);
  auto* bits = static_cast<uint8_t*>(mask.data_ptr());
  dispatch_cpu(dtype_of(x, "x"), [&](auto zero) {
    using T = decltype(zero);
    const auto* in = static_cast<const T*>(x.data_ptr());
    auto* o = static_cast<T*>(out.data_ptr());
    torch::stable::parallel_for(0, bytes, 4096, [&](int64_t begin, int64_t end) {
      // In cache-sized pieces: the second loop finds the input there.
      for (int64_t b = begin; b < end; b += 512)
        relu_range(in, o, bits, b * 8, std::min(numel, std::min(end, b + 512) * 8));
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
