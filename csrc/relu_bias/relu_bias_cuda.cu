// dx = y > 0 (or NaN) ? dy : 0 and dbias = sum of dx per channel, in one pass over memory.
// Stage 1: block = (slice, column). channels_last: a column is up to 64 groups of channels (a
// 16-byte vector each, or single channels where C or a pointer allow no vectors), the block's other
// threads take turns at the slice's pixels. NCHW: a column is a channel, its slice a part of the
// images' planes. A block's sums are joined in shared memory and written to
// partial[slice][channel]. Stage 2: 32 channels per block, 8 threads each over the slices. Sums in
// fp32, in a fixed order.
#include "common/dispatch.cuh"
#include "common/fast_div.h"
#include "common/words.cuh"
#include "relu_bias/relu_bias.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 256, kWarp = 32, kRows = kThreads / kWarp, kMaxGroups = 64;

// Masks V elements, adds them to sum[V].
template <class T, int V>
__device__ __forceinline__ void mask_chunk(const T* grad, const T* y, T* dx, float* sum) {
  Chunk<T, V> g, out;
  g.load(grad);
  out.load(y);
  float v[V < 2 ? 2 : V] = {};
#pragma unroll
  for (int e = 0; e < V; ++e) {
    v[e] = out.element(e) <= 0.f ? 0.f : g.element(e);  // NaN passes, as in torch
    sum[e] += v[e];
  }
  Chunk<T, V>::rounded(v).store(dx);
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    relu_bias_nhwc_kernel(const T* __restrict__ grad, const T* __restrict__ y, T* __restrict__ dx,
                          float* __restrict__ partial, int64_t c, int64_t terms, int64_t per_slice,
                          int groups, int columns) {
  __shared__ float sums[V][kThreads];
  const int64_t column = blockIdx.x % columns, slice = blockIdx.x / columns;
  const int lanes = kThreads / groups, group = threadIdx.x % groups, lane = threadIdx.x / groups;
  const int64_t c0 = (column * groups + group) * V;
  const int64_t end = min(terms, (slice + 1) * per_slice);
  float sum[V] = {};
  if (lane < lanes && c0 < c) {
#pragma unroll 4
    for (int64_t i = slice * per_slice + lane; i < end; i += lanes) {
      const int64_t at = i * c + c0;
      mask_chunk<T, V>(grad + at, y + at, dx + at, sum);
    }
  }
#pragma unroll
  for (int e = 0; e < V; ++e) sums[e][threadIdx.x] = sum[e];
  __syncthreads();
  for (int i = threadIdx.x; i < V * groups; i += kThreads) {
    const int64_t channel = column * groups * V + i;
    if (channel >= c) continue;
    float total = 0.f;
    for (int l = 0; l < lanes; ++l) total += sums[i % V][l * groups + i / V];
    partial[slice * c + channel] = total;
  }
}

// terms, per_slice and by_pixels count vectors of V pixels.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    relu_bias_nchw_kernel(const T* __restrict__ grad, const T* __restrict__ y, T* __restrict__ dx,
                          float* __restrict__ partial, int64_t c, uint32_t terms,
                          uint32_t per_slice, FastDiv by_pixels) {
  __shared__ float sums[kRows];
  const int64_t channel = blockIdx.x % c, slice = blockIdx.x / c;
  const uint32_t first = static_cast<uint32_t>(slice) * per_slice,
                 end = min(terms, first + per_slice);
  float sum[V] = {};
#pragma unroll 4
  for (uint32_t i = first + threadIdx.x; i < end; i += kThreads) {
    uint32_t pixel = i;
    const int64_t image = by_pixels.split(pixel);
    const int64_t at = ((image * c + channel) * by_pixels.divisor + pixel) * V;
    mask_chunk<T, V>(grad + at, y + at, dx + at, sum);
  }
  float total = 0.f;
#pragma unroll
  for (int e = 0; e < V; ++e) total += sum[e];
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = total;
  __syncthreads();
  if (threadIdx.x != 0) return;
  total = 0.f;
  for (int w = 0; w < kRows; ++w) total += sums[w];
  partial[slice * c + channel] = total;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    bias_finish_kernel(const float* __restrict__ partial, T* __restrict__ dbias, int64_t c,
                       int64_t slices) {
  __shared__ float sums[kRows][kWarp];
  const int column = threadIdx.x % kWarp, row = threadIdx.x / kWarp;
  const int64_t channel = int64_t{blockIdx.x} * kWarp + column;
  float sum = 0.f;
  if (channel < c)
    for (int64_t s = row; s < slices; s += kRows) sum += partial[s * c + channel];
  sums[row][column] = sum;
  __syncthreads();
  if (row != 0 || channel >= c) return;
  for (int r = 1; r < kRows; ++r) sum += sums[r][column];
  dbias[channel] = from_float<T>(sum);
}

template <class T, int V>
cudaError_t launch_nhwc(const ReluBiasParams& p, cudaStream_t stream) {
  const int64_t all = p.c / V, blocks = ceil_div(all, kMaxGroups), terms = p.n * p.pixels;
  relu_bias_nhwc_kernel<T, V><<<static_cast<unsigned>(blocks * p.slices), kThreads, 0, stream>>>(
      static_cast<const T*>(p.grad), static_cast<const T*>(p.y), static_cast<T*>(p.dx), p.partial,
      p.c, terms, ceil_div(terms, p.slices), static_cast<int>(ceil_div(all, blocks)),
      static_cast<int>(blocks));
  return cudaGetLastError();
}

template <class T, int V>
cudaError_t launch_nchw(const ReluBiasParams& p, cudaStream_t stream) {
  const int64_t terms = p.n * p.pixels / V;
  if (terms + ceil_div(terms, p.slices) + kThreads >= int64_t{1} << 31)
    return cudaErrorInvalidValue;
  relu_bias_nchw_kernel<T, V><<<static_cast<unsigned>(p.c * p.slices), kThreads, 0, stream>>>(
      static_cast<const T*>(p.grad), static_cast<const T*>(p.y), static_cast<T*>(p.dx), p.partial,
      p.c, static_cast<uint32_t>(terms), static_cast<uint32_t>(ceil_div(terms, p.slices)),
      FastDiv(p.pixels / V));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_relu_bias_backward(const ReluBiasParams& p, cudaStream_t stream) {
  if (p.c == 0) return cudaSuccess;
  if (p.slices < 1 || p.c > kMaxThreads / p.slices) return cudaErrorInvalidValue;
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int V = kVecSize<T>;
    const bool nhwc = p.layout == Layout::nhwc;
    const bool vectors = (nhwc ? p.c : p.pixels) % V == 0 && aligned_to(p.grad, 16) &&
                         aligned_to(p.y, 16) && aligned_to(p.dx, 16);
    auto* launch = nhwc ? (vectors ? launch_nhwc<T, V> : launch_nhwc<T, 1>)
                        : (vectors ? launch_nchw<T, V> : launch_nchw<T, 1>);
    if (p.n * p.pixels == 0) return cudaErrorInvalidValue;  // dbias would be 0: the caller's affair
    const cudaError_t error = launch(p, stream);
    if (error != cudaSuccess) return error;
    bias_finish_kernel<T><<<static_cast<unsigned>(ceil_div(p.c, kWarp)), kThreads, 0, stream>>>(
        p.partial, static_cast<T*>(p.dbias), p.c, p.slices);
    return cudaGetLastError();
  });
}

}  // namespace cnnkernels
