// Global average pool. NCHW: one warp per plane, 16-byte accesses between scalar ends, so planes at
// any offset work. channels_last: block = a few channel groups (a 16-byte vector, or single
// channels where C or the pointers allow no vectors) of one image, its threads take turns at the
// pixels and are joined in shared memory. Reading is bound by the bytes in flight: every thread
// loads kAhead pieces before it adds, and large images are split by channels, down to 64 bytes of a
// pixel. fp32 sums in a fixed order, whatever the batch: results repeat bit by bit.
#include "common/dispatch.cuh"
#include "common/fast_div.h"
#include "common/plane_tile.cuh"
#include "common/words.cuh"
#include "global_avg_pool2d/global_avg_pool2d.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kAhead = 8;         // loads of a thread before their sum
constexpr int kResident = 4;      // blocks per multiprocessor: 64 registers
constexpr int kFewestBytes = 64;  // of a pixel in one block: two sectors

// sum[e] += element e of the chunks first, first + stride, ... < count; they lie `step` elements
// apart from p on.
template <class T, int V>
__device__ __forceinline__ void add_chunks(const T* p, int first, int stride, int64_t count,
                                           int64_t step, float* sum) {
  const int64_t hop = stride * step;
  p += first * step;
  for (int64_t i = first; i < count; i += kAhead * stride) {
    const int left = static_cast<int>(min(count - i, int64_t{kAhead} * stride));
    Chunk<T, V> v[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a, p += hop) {
      v[a] = Chunk<T, V>::filled(0u);
      if (a * stride < left) v[a].load(p);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
#pragma unroll
      for (int e = 0; e < V; ++e) sum[e] += v[a].element(e);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kResident)
    mean_nchw_kernel(const T* __restrict__ x, T* __restrict__ y, int64_t planes, int64_t pixels) {
  constexpr int V = kVecSize<T>;
  const int64_t plane = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (plane >= planes) return;
  const T* p = x + plane * pixels;
  const int head = unaligned_head(p, static_cast<int>(min(pixels, int64_t{V})));
  const int64_t vectors = (pixels - head) / V;
  const int64_t tail = head + vectors * V + lane;
  float ends = 0.f, sums[V] = {};
  if (lane < head) ends = to_float(p[lane]);
  if (tail < pixels) ends += to_float(p[tail]);
  add_chunks<T, V>(p + head, lane, kWarp, vectors, V, sums);
  float sum = ends;
#pragma unroll
  for (int e = 0; e < V; ++e) sum += sums[e];
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane == 0) y[plane] = from_float<T>(sum / static_cast<float>(pixels));
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, kResident)
    mean_nhwc_kernel(const T* __restrict__ x, T* __restrict__ y, int64_t c, int64_t pixels,
                     int groups, int64_t group_blocks) {
  __shared__ float partial[V][kThreads];
  const int64_t n = blockIdx.x / group_blocks;
  const int lanes = kThreads / groups, group = threadIdx.x % groups, lane = threadIdx.x / groups;
  const int64_t c0 = (blockIdx.x % group_blocks * groups + group) * V;
  float sum[V] = {};
  if (lane < lanes && c0 < c)
    add_chunks<T, V>(x + n * pixels * c + c0, lane, lanes, pixels, c, sum);
#pragma unroll
  for (int e = 0; e < V; ++e) partial[e][threadIdx.x] = sum[e];
  __syncthreads();
  for (int i = threadIdx.x; i < V * groups; i += kThreads) {
    const int64_t channel = blockIdx.x % group_blocks * groups * V + i;
    if (channel >= c) continue;
    float total = 0.f;
    for (int l = 0; l < lanes; ++l) total += partial[i % V][l * groups + i / V];
    y[n * c + channel] = from_float<T>(total / static_cast<float>(pixels));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    spread_nchw_kernel(const T* __restrict__ dy, T* __restrict__ dx, int64_t planes,
                       int64_t pixels) {
  constexpr int V = kVecSize<T>;
  const int64_t plane = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
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
                       FastDiv by_groups, FastDiv by_pixels, uint32_t total) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= total) return;
  uint32_t group = i;
  const int64_t n = by_pixels.quotient(by_groups.split(group));
  Chunk<T, V> g;
  g.load(dy + n * c + group * V);
  float share[V < 2 ? 2 : V] = {};
#pragma unroll
  for (int e = 0; e < V; ++e) share[e] = g.element(e) / static_cast<float>(pixels);
  Chunk<T, V>::rounded(share).store(dx + int64_t{i} * V);
}

template <class T, int V>
cudaError_t launch_nhwc(const GlobalAvgPoolParams& p, bool backward, cudaStream_t stream) {
  const T* in = static_cast<const T*>(p.in);
  T* out = static_cast<T*>(p.out);
  const int64_t all_groups = p.c / V;
  if (backward) {
    const int64_t per_image = p.pixels * all_groups;
    return for_slices(p.n, per_image, [&](int64_t first, int64_t count) {
      const auto total = static_cast<uint32_t>(count * per_image);
      spread_nhwc_kernel<T, V>
          <<<static_cast<unsigned>(ceil_div(total, kThreads)), kThreads, 0, stream>>>(
              in + first * p.c, out + first * p.pixels * p.c, p.c, p.pixels, FastDiv(all_groups),
              FastDiv(p.pixels), total);
      return cudaGetLastError();
    });
  }
  // So many threads per pixel that each of the block's threads gets about kAhead pixels.
  const int64_t fewest = kFewestBytes / (V * static_cast<int>(sizeof(T)));
  const int64_t wanted = ceil_div(int64_t{kThreads} * kAhead, p.pixels);
  const int64_t group_blocks =
      ceil_div(all_groups, std::min<int64_t>(std::max(wanted, fewest), 64));
  const int64_t groups = ceil_div(all_groups, group_blocks);
  mean_nhwc_kernel<T, V><<<static_cast<unsigned>(p.n * group_blocks), kThreads, 0, stream>>>(
      in, out, p.c, p.pixels, static_cast<int>(groups), group_blocks);
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
    kernel<<<static_cast<unsigned>(ceil_div(p.n * p.c, kWarps)), kThreads, 0, stream>>>(
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
