// Mean of each plane on the CPU, and its backward: leaf ops cnnkernels::_global_avg_pool2d_cpu and
// _global_avg_pool2d_backward_cpu. fp32 sums in 16 lanes (NCHW) or per channel (NHWC), in a fixed
// order whatever the number of threads.
#include <vector>

#include "common/cpu_isa.h"

namespace cnnkernels {
namespace {

template <class T>
CNNKERNELS_INLINE float plane_sum(const T* x, int64_t n) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int e = 0; e < kLanes; ++e) lanes[e] += to_f32(x[i + e]);
  for (int e = 0; i + e < n; ++e) lanes[e] += to_f32(x[i + e]);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int e = 0; e < width; ++e) lanes[e] += lanes[e + width];
  return lanes[0];
}

// out[c] = (sum of x[i * channels + c] over n pixels i) / divisor, for `count` of the channels.
template <class T>
CNNKERNELS_INLINE void pixel_means(const T* x, int64_t n, int64_t channels, int64_t count,
                                   float divisor, float* __restrict sums, T* __restrict out) {
  std::fill_n(sums, count, 0.f);
  for (int64_t i = 0; i < n; ++i) {
    const T* pixel = x + i * channels;
    for (int64_t c = 0; c < count; ++c) sums[c] += to_f32(pixel[c]);
  }
  for (int64_t c = 0; c < count; ++c) out[c] = from_f32<T>(sums[c] / divisor);
}

Tensor global_avg_pool2d_cpu(const Tensor& x) {
  const Layout layout = layout_of(x, "x");
  const int64_t n = x.size(0), c = x.size(1), hw = x.size(2) * x.size(3);
  STD_TORCH_CHECK(hw > 0, "x is ", to_string(x), "; height and width can't be 0");
  Tensor out = empty_like_device(x, {n, c, 1, 1}, x.scalar_type(), layout);
  if (out.numel() == 0) return out;
  const float divisor = static_cast<float>(hw);
  dispatch_cpu(dtype_of(x, "x"), [&](auto zero) {
    using T = decltype(zero);
    const auto* in = static_cast<const T*>(x.data_ptr());
    auto* o = static_cast<T*>(out.data_ptr());
    if (layout == Layout::nchw) {
      const int64_t grain = std::max<int64_t>(1, 32768 / hw);
      torch::stable::parallel_for(0, n * c, grain, [&](int64_t begin, int64_t end) {
        with_isa([&](auto) {
          for (int64_t i = begin; i < end; ++i)
            o[i] = from_f32<T>(plane_sum(in + i * hw, hw) / divisor);
        });
      });
      return;
    }
    // Groups of channels, so that a single image keeps all threads busy.
    constexpr int64_t kGroup = 256;
    const int64_t groups = (c + kGroup - 1) / kGroup;
    const int64_t grain = std::max<int64_t>(1, 32768 / (hw * std::min(c, kGroup)));
    torch::stable::parallel_for(0, n * groups, grain, [&](int64_t begin, int64_t end) {
      std::vector<float> sums(kGroup);
      with_isa([&](auto) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t image = i / groups, first = i % groups * kGroup;
          pixel_means(in + image * hw * c + first, hw, c, std::min(kGroup, c - first), divisor,
                      sums.data(), o + image * c + first);
        }
      });
    });
  });
  return out;
}

Tensor global_avg_pool2d_backward_cpu(const Tensor& grad, const Ints& input_size,
                                      bool channels_last) {
  STD_TORCH_CHECK(input_size.size() == 4, "input_size must have 4 numbers");
  const int64_t n = input_size[0], c = input_size[1], hw = input_size[2] * input_size[3];
  STD_TORCH_CHECK(grad.numel() == n * c && grad.is_contiguous() && hw > 0,
                  "grad must be contiguous [N, C, 1, 1] of a non-empty input, got ",
                  to_string(grad));
  Tensor dx = empty_like_device(grad, input_size, grad.scalar_type(),
                                channels_last ? Layout::nhwc : Layout::nchw);
  if (dx.numel() == 0) return dx;
  const float divisor = static_cast<float>(hw);
  dispatch_cpu(dtype_of(grad, "grad"), [&](auto zero) {
    using T = decltype(zero);
    const auto* g = static_cast<const T*>(grad.data_ptr());
    auto* o = static_cast<T*>(dx.data_ptr());
    const int64_t outer = channels_last ? n * hw : n * c, inner = channels_last ? c : hw;
    const int64_t grain = std::max<int64_t>(1, 32768 / inner);
    torch::stable::parallel_for(0, outer, grain, [&](int64_t begin, int64_t end) {
      if (!channels_last) {
        for (int64_t i = begin; i < end; ++i)
          std::fill_n(o + i * hw, hw, from_f32<T>(to_f32(g[i]) / divisor));
        return;
      }
      std::vector<T> share(c);  // one image's gradients, copied to each of its pixels
      int64_t image = -1;
      for (int64_t i = begin; i < end; ++i) {
        if (i / hw != image) {
          image = i / hw;
          for (int64_t k = 0; k < c; ++k)
            share[k] = from_f32<T>(to_f32(g[image * c + k]) / divisor);
        }
        std::copy(share.begin(), share.end(), o + i * c);
      }
    });
  });
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnkernels, m) {
  m.def("_global_avg_pool2d_cpu(Tensor x) -> Tensor");
  m.def(
      "_global_avg_pool2d_backward_cpu(Tensor grad, int[] input_size, bool channels_last) -> "
      "Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(cnnkernels, CPU, m) {
  m.impl("_global_avg_pool2d_cpu", TORCH_BOX(&global_avg_pool2d_cpu));
  m.impl("_global_avg_pool2d_backward_cpu", TORCH_BOX(&global_avg_pool2d_backward_cpu));
}

}  // namespace cnnkernels
