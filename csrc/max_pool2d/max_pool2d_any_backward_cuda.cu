// Max-pool backward for any window, dilation, layout and alignment: a deterministic gather.
// Thread = one input element; it visits the windows that reach it (oh, then ow ascending) and adds,
// in fp32, the gradients of those whose offset names it. Grid-stride loop with 64-bit indices.
#include "common/dispatch.cuh"
#include "max_pool2d/max_pool2d.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 256;

// Smallest window index whose last tap is at or after `at`.
__device__ __forceinline__ int first_window(int at, int span, int stride) {
  const int d = at - span;
  return d <= 0 ? 0 : (d + stride - 1) / stride;
}

template <class T, class Offset>
__global__ void __launch_bounds__(kThreads)
    max_pool2d_any_backward_kernel(const T* __restrict__ dy, const Offset* __restrict__ offsets,
                                   T* __restrict__ dx, const PoolShape s, Layout layout,
                                   int64_t total) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += step) {
    int64_t n, c, rest = i;
    int h, w;
    if (layout == Layout::nhwc) {
      c = rest % s.c, rest /= s.c;
      w = static_cast<int>(rest % s.w), rest /= s.w;
      h = static_cast<int>(rest % s.h), n = rest / s.h;
    } else {
      w = static_cast<int>(rest % s.w), rest /= s.w;
      h = static_cast<int>(rest % s.h), rest /= s.h;
      c = rest % s.c, n = rest / s.c;
    }
    const int64_t windows =
        layout == Layout::nhwc ? n * s.oh * s.ow * s.c + c : (n * s.c + c) * s.oh * s.ow;
    const int64_t window_stride = layout == Layout::nhwc ? s.c : 1;
    const int hp = h + s.pad_h, wp = w + s.pad_w;
    const int oh0 = first_window(hp, (s.kernel_h - 1) * s.dilation_h, s.stride_h);
    const int ow0 = first_window(wp, (s.kernel_w - 1) * s.dilation_w, s.stride_w);
    const int oh1 = min(hp / s.stride_h, s.oh - 1), ow1 = min(wp / s.stride_w, s.ow - 1);

    float sum = 0.f;
    for (int oh = oh0; oh <= oh1; ++oh) {
      const int dh = hp - oh * s.stride_h;
      if (dh % s.dilation_h) continue;
      for (int ow = ow0; ow <= ow1; ++ow) {
        const int dw = wp - ow * s.stride_w;
        if (dw % s.dilation_w) continue;
        const int64_t at = windows + (int64_t{oh} * s.ow + ow) * window_stride;
        const int position = dh / s.dilation_h * s.kernel_w + dw / s.dilation_w;
        if (static_cast<int>(offsets[at]) == position) sum += to_float(dy[at]);
      }
    }
    dx[i] = from_float<T>(sum);
  }
}

template <class T, class Offset>
cudaError_t launch(const MaxPoolBackwardParams& p, cudaStream_t stream) {
  const PoolShape& s = p.shape;
  const int64_t total = s.n * s.c * s.h * s.w;
  if (total == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(total, kThreads), 1 << 22));
  max_pool2d_any_backward_kernel<T, Offset><<<blocks, kThreads, 0, stream>>>(
      static_cast<const T*>(p.dy), static_cast<const Offset*>(p.offsets), static_cast<T*>(p.dx), s,
      p.layout, total);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_max_pool2d_backward_any(const MaxPoolBackwardParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    return wide_offsets(p.shape) ? launch<T, int32_t>(p, stream) : launch<T, uint8_t>(p, stream);
  });
}

}  // namespace cnnkernels
