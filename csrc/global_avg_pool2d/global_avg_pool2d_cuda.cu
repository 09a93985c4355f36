// Global average pool. NCHW: one warp per plane, 16-byte accesses between scalar ends, so planes at
// any offset work. channels_last: block = 32 channel groups (a 16-byte vector, or single channels
// where C or the pointers allow no vectors) x 8 pixel lanes of one image, joined in shared memory.
// fp32 sums in a fixed order: results repeat bit by bit.
#include "common/dispatch.cuh"
#include "common/plane_tile.cuh"
#include "common/words.cuh"
#include "global_avg_pool2d/global_avg_pool2d.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 256, kWarp = 32, kLanes = kThreads / kWarp;

template <class T>
__global__ void __launch_bounds__(kThreads)
    mean_nchw_kernel(const T* __restrict__ x, T* __restrict__ y, int64_t planes, int64_t pixels) {
  constexpr int V = kVecSize<T>;
  const int64_t plane = int64_t{blockIdx.x} * kLanes + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (plane >= planes) return;
  const T* p = x + plane * pixels;
  const int head = unaligned_head(p, static_cast<int>(min(pixels, int64_t{V})));
  const int64_t vectors = (pixels - head) / V;
  float sum = 0.f;
  for (int64_t i = lane; i < vectors; i += kWarp) {
    Chunk<T, V> v;
    v.load(p + head + i * V);
#pragma unroll
    for (int e = 0; e < V; ++e) sum += v.element(e);
  }
  if (lane < head) sum += to_float(p[lane]);
  const int64_t tail = head + vectors * V + lane;
  if (tail < pixels) sum += to_float(p[tail]);
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane == 0) y[plane] = from_float<T>(sum / static_cast<float>(pixels));
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    mean_nhwc_kernel(const T* __restrict__ x, T* __restrict__ y, int64_t c, int64_t pixels,
                     int64_t group_blocks) {
  __shared__ float partial[kLanes][V][kWarp];
  const int64_t n = blockIdx.x / group_blocks;
  const int group = threadIdx.x % kWarp, lane = threadIdx.x / kWarp;
  const int64_t c0 = (blockIdx.x % group_blocks * kWarp + group) * V;
  float sum[V] = {};
  if (c0 < c) {
    const T* p = x + n * pixels * c + c0;
#pragma unroll 4
    for (int64_t i = lane; i < pixels; i += kLanes) {
      Chunk<T, V> v;
      v.load(p + i * c);
#pragma unroll
      for (int e = 0; e < V; ++e) sum[e] += v.element(e);
    }
  }
#pragma unroll
  for (int e = 0; e < V; ++e) partial[lane][e][group] = sum[e];
  __syncthreads();
  for (int i = threadIdx.x; i < V * kWarp; i += kThreads) {
    const int64_t channel = (blockIdx.x % group_blocks * kWarp + i / V) * V + i % V;
    if (channel >= c) continue;
    float total = 0.f;
#pragma unroll
    for (int l = 0; l < kLanes; ++l) total += partial[l][i % V][i / V];
    y[n * c + channel] = from_float<T>(total / static_cast<float>(pixels));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    spread_nchw_kernel(const T* __restrict__ dy, T* __restrict__ dx, int64_t planes,
                       int64_t pixels) {
  constexpr int V = kVecSize<T>;
  const int64_t plane = int64_t{blockIdx.x} * kLanes + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (plane >= planes) return;
  T* p = dx + plane * pixels;
  Vec<T> share;
#pragma unroll
  for (int e = 0; e < V; ++e)
    share.e[e] = from_float<T>(to_float(dy[plane]) / static_cast<float>(pixels));
  const int head = unaligned_head(p, static_cast<int>(min(pixels, int64_t{V})));
  const int64_t vectors = (pixels - head) / V;
  for (int64_t i = lane; i < vectors; i += kWarp) share.store(p + head + i * V);
  if (lane < head) p[lane] = share.e[0];
  const int64_t tail = head + vectors * V + lane;
  if (tail < pixels) p[tail] = share.e[0];
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    spread_nhwc_kernel(const T* __restrict__ dy, T* __restrict__ dx, int64_t c, int64_t pixels,
                       int64_t total) {
  const int64_t groups = c / V, step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += step) {
    const int64_t n = i / (groups * pixels);
    Chunk<T, V> g;
    g.load(dy + n * c + i % groups * V);
    float share[V < 2 ? 2 : V] = {};
#pragma unroll
    for (int e = 0; e < V; ++e) share[e] = g.element(e) / static_cast<float>(pixels);
    Chunk<T, V>::rounded(share).store(dx + i * V);
  }
}

template <class T, int V>
cudaError_t launch_nhwc(const GlobalAvgPoolParams& p, bool backward, cudaStream_t stream) {
  const T* in = static_cast<const T*>(p.in);
  T* out = static_cast<T*>(p.out);
  if (backward) {
    const int64_t total = p.n * p.pixels * p.c / V;
    const auto blocks =
        static_cast<unsigned>(std::min<int64_t>(ceil_div(total, kThreads), 1 << 20));
    spread_nhwc_kernel<T, V><<<blocks, kThreads, 0, stream>>>(in, out, p.c, p.pixels, total);
  } else {
    const int64_t group_blocks = ceil_div(p.c, V * kWarp);
    mean_nhwc_kernel<T, V><<<static_cast<unsigned>(p.n * group_blocks), kThreads, 0, stream>>>(
        in, out, p.c, p.pixels, group_blocks);
  }
  return cudaGetLastError();
}

cudaError_t launch(const GlobalAvgPoolParams& p, bool backward, cudaStream_t stream) {
  if (p.n * p.c * p.pixels == 0) return cudaSuccess;
  if (p.n * p.c > kMaxThreads) return cudaErrorInvalidValue;
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (p.layout == Layout::nhwc) {
      const bool vectors = p.c % kVecSize<T> == 0 && aligned_to(p.in, 16) && aligned_to(p.out, 16);
      return vectors ? launch_nhwc<T, kVecSize<T>>(p, backward, stream)
                     : launch_nhwc<T, 1>(p, backward, stream);
    }
    auto* kernel = backward ? spread_nchw_kernel<T> : mean_nchw_kernel<T>;
    kernel<<<static_cast<unsigned>(ceil_div(p.n * p.c, kLanes)), kThreads, 0, stream>>>(
        static_cast<const T*>(p.in), static_cast<T*>(p.out), p.n * p.c, p.pixels);
    return cudaGetLastError();
  });
}

}  // namespace

cudaError_t launch_global_avg_pool2d(const GlobalAvgPoolParams& p, cudaStream_t stream) {
  return launch(p, false, stream);
}
cudaError_t launch_global_avg_pool2d_backward(const GlobalAvgPoolParams& p, cudaStream_t stream) {
  return launch(p, true, stream);
}

}  // namespace cnnkernels
