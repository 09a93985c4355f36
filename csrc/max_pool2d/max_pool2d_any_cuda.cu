// Max-pool forward for any window, dilation, layout, alignment and channel count.
// Thread = V consecutive elements of the output: V = a 16-byte channel vector (channels_last),
// or 1. Grid-stride loop with 64-bit indices; the scan is torch's, tap by tap: first maximum, last
// NaN.
#include "common/dispatch.cuh"
#include "common/words.cuh"
#include "max_pool2d/max_pool2d.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 256;

template <class T, int V, class Offset>
__global__ void __launch_bounds__(kThreads)
    max_pool2d_any_kernel(const T* __restrict__ x, T* __restrict__ y, Offset* __restrict__ offsets,
                          const PoolShape s, Layout layout, bool relu, int64_t total) {
  using Load = Chunk<T, V>;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += step) {
    // Output element i of memory -> image n, channel c, window (oh, ow).
    int64_t n, c, oh, ow, rest = i;
    int64_t pixel_stride = 1;
    if (layout == Layout::nhwc) {
      const int64_t groups = s.c / V;
      c = rest % groups * V, rest /= groups;
      ow = rest % s.ow, rest /= s.ow;
      oh = rest % s.oh, n = rest / s.oh;
      pixel_stride = s.c;
    } else {
      ow = rest % s.ow, rest /= s.ow;
      oh = rest % s.oh, rest /= s.oh;
      c = rest % s.c, n = rest / s.c;
    }
    const T* image =
        layout == Layout::nhwc ? x + n * s.h * s.w * s.c + c : x + (n * s.c + c) * s.h * s.w;
    const int h0 = static_cast<int>(oh) * s.stride_h - s.pad_h;
    const int w0 = static_cast<int>(ow) * s.stride_w - s.pad_w;
    const int kh0 = plan::first_valid_tap(h0, s.dilation_h);
    const int kw0 = plan::first_valid_tap(w0, s.dilation_w);

    float best[V];
    int position[V];
#pragma unroll
    for (int e = 0; e < V; ++e) best[e] = -INFINITY, position[e] = -1;
    for (int kh = kh0; kh < s.kernel_h && h0 + kh * s.dilation_h < s.h; ++kh)
      for (int kw = kw0; kw < s.kernel_w && w0 + kw * s.dilation_w < s.w; ++kw) {
        const int64_t pixel = int64_t{h0 + kh * s.dilation_h} * s.w + w0 + kw * s.dilation_w;
        Load value;
        value.load(image + pixel * pixel_stride);
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const float v = value.element(e);
          if (v > best[e] || v != v || position[e] < 0) {
            best[e] = v;
            position[e] = kh * s.kernel_w + kw;
          }
        }
      }
    if (relu) {
#pragma unroll
      for (int e = 0; e < V; ++e)
        if (best[e] <= 0.f) best[e] = 0.f, position[e] = -1;
    }
    float packed[V < 2 ? 2 : V] = {};
#pragma unroll
    for (int e = 0; e < V; ++e) packed[e] = best[e];
    Load::rounded(packed).store(y + i * V);
    if (offsets) {
#pragma unroll
      for (int e = 0; e < V; ++e) offsets[i * V + e] = static_cast<Offset>(position[e]);
    }
  }
}

template <class T, int V, class Offset>
cudaError_t launch(const MaxPoolParams& p, cudaStream_t stream) {
  const PoolShape& s = p.shape;
  const int64_t total = s.n * s.c * s.oh * s.ow / V;
  if (total == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(total, kThreads), 1 << 22));
  max_pool2d_any_kernel<T, V, Offset><<<blocks, kThreads, 0, stream>>>(
      static_cast<const T*>(p.x), static_cast<T*>(p.y), static_cast<Offset*>(p.offsets), s,
      p.layout, p.relu, total);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_max_pool2d_any(const MaxPoolParams& p, bool vectors, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (wide_offsets(p.shape)) return launch<T, 1, int32_t>(p, stream);
    return vectors ? launch<T, kVecSize<T>, uint8_t>(p, stream) : launch<T, 1, uint8_t>(p, stream);
  });
}

}  // namespace cnnkernels
