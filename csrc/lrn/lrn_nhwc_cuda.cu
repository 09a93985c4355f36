// LRN forward, channels_last, window of 5, optional bias and ReLU in front.
// Thread = one 16-byte channel vector; the two channels on each side come by one small extra load
// (L1 hits). Grid flat over (pixel, vector), the vector fastest. No shared memory, no shuffles:
// runs at copy bandwidth (two special-function instructions per element are below the limit).
#include "common/dispatch.cuh"
#include "common/fast_div.h"
#include "common/lrn_math.cuh"
#include "lrn/lrn.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 256;
constexpr int kHalo = 2;

template <class T, bool kBias>
__global__ void __launch_bounds__(kThreads)
    lrn_nhwc_kernel(const T* __restrict__ x, const T* __restrict__ bias, T* __restrict__ y,
                    FastDiv by_vectors, uint32_t total, const LrnConstants lrn) {
  constexpr int V = kVecSize<T>;
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= total) return;
  uint32_t vector = index;
  by_vectors.split(vector);
  const bool left = vector > 0, right = vector + 1 < by_vectors.divisor;
  const T* p = x + int64_t{index} * V;
  const T* b = bias + vector * V;

  auto own = Chunk<T, V>::filled(0u);
  auto before = Chunk<T, kHalo>::filled(0u), after = before;
  own.load(p);
  if (left) before.load(p - kHalo);
  if (right) after.load(p + V);

  float v[V + 2 * kHalo], q[V + 2 * kHalo], sum[V];
  TwoFloats d[V];
  lrn_input<kBias>(own, b, true, lrn.relu, v + kHalo);
  lrn_input<kBias>(before, b - kHalo, left, lrn.relu, v);
  lrn_input<kBias>(after, b + V, right, lrn.relu, v + kHalo + V);
#pragma unroll
  for (int i = 0; i < V + 2 * kHalo; ++i) q[i] = product(v[i], v[i]);
  sums_of_5<V>(q, sum);
  denominators<T, V>(v, sum, lrn, d);
#pragma unroll
  for (int e = 0; e < V; ++e) sum[e] = LrnPower<T>::scaled(v[kHalo + e], d[e], lrn);
  Chunk<T, V>::rounded(sum).store(y + int64_t{index} * V);
}

}  // namespace

cudaError_t launch_lrn_nhwc(const LrnParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    const int64_t vectors = p.shape.c / kVecSize<T>, per_image = p.shape.pixels * vectors;
    auto* kernel = p.bias ? lrn_nhwc_kernel<T, true> : lrn_nhwc_kernel<T, false>;
    return for_slices(p.shape.n, per_image, [&](int64_t first, int64_t count) {
      const int64_t at = first * p.shape.pixels * p.shape.c, total = count * per_image;
      kernel<<<static_cast<unsigned>(ceil_div(total, kThreads)), kThreads, 0, stream>>>(
          static_cast<const T*>(p.x) + at, static_cast<const T*>(p.bias),
          static_cast<T*>(p.out) + at, FastDiv(vectors), static_cast<uint32_t>(total),
          LrnConstants(p.shape));
      return cudaGetLastError();
    });
  });
}

}  // namespace cnnkernels
