// LRN backward, channels_last, window of 5, from x and dy alone, optional bias and ReLU in front:
//   dx = dy d^-b - 2 alpha b / size * v * sum over the window of t,  t = dy v d^(-b-1).
// Thread = one 16-byte channel vector; t of two channels on each side is recomputed (halo of 4
// channels of x, 2 of dy: L1 hits). Grid flat over (pixel, vector). No shared memory; this runs at
// copy bandwidth.
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
    lrn_nhwc_backward_kernel(const T* __restrict__ x, const T* __restrict__ bias,
                             const T* __restrict__ dy, T* __restrict__ dx, FastDiv by_vectors,
                             uint32_t total, const LrnConstants lrn) {
  constexpr int V = kVecSize<T>, kT = V + 2 * kHalo, kX = V + 4 * kHalo;
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= total) return;
  uint32_t vector = index;
  by_vectors.split(vector);
  const bool left = vector > 0, right = vector + 1 < by_vectors.divisor;
  const T* p = x + int64_t{index} * V;
  const T* g = dy + int64_t{index} * V;
  const T* b = bias + vector * V;

  auto x_own = Chunk<T, V>::filled(0u), dy_own = x_own;
  auto x_before = Chunk<T, 2 * kHalo>::filled(0u), x_after = x_before;
  auto dy_before = Chunk<T, kHalo>::filled(0u), dy_after = dy_before;
  x_own.load(p);
  dy_own.load(g);
  if (left) x_before.load(p - 2 * kHalo), dy_before.load(g - kHalo);
  if (right) x_after.load(p + V), dy_after.load(g + V);

  float v[kX], q[kX], sum[kT], t[kT], direct[V];
  TwoFloats d[kT];
  lrn_input<kBias>(x_own, b, true, lrn.relu, v + 2 * kHalo);
  lrn_input<kBias>(x_before, b - 2 * kHalo, left, lrn.relu, v);
  lrn_input<kBias>(x_after, b + V, right, lrn.relu, v + 2 * kHalo + V);
#pragma unroll
  for (int i = 0; i < kX; ++i) q[i] = product(v[i], v[i]);
  sums_of_5<kT>(q, sum);
  denominators<T, kT>(v, sum, lrn, d);
#pragma unroll
  for (int i = 0; i < kT; ++i) {
    const float grad = i < kHalo       ? dy_before.element(i)
                       : i < kHalo + V ? dy_own.element(i - kHalo)
                                       : dy_after.element(i - kHalo - V);
    float power, power1;
    LrnPower<T>::both(d[i], lrn, power, power1);
    t[i] = product(grad * v[kHalo + i], power1);
    if (i >= kHalo && i < kHalo + V) direct[i - kHalo] = product(grad, power);
  }
  const float factor = -2.f * lrn.scale * lrn.beta;
  sums_of_5<V>(t, sum);
#pragma unroll
  for (int e = 0; e < V; ++e) {
    const float own = v[2 * kHalo + e];
    direct[e] = fmaf(factor * own, sum[e], direct[e]);
    if (lrn.relu && own <= 0.f) direct[e] = 0.f;
  }
  Chunk<T, V>::rounded(direct).store(dx + int64_t{index} * V);
}

}  // namespace

cudaError_t launch_lrn_backward_nhwc(const LrnParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    const int64_t vectors = p.shape.c / kVecSize<T>, per_image = p.shape.pixels * vectors;
    auto* kernel = p.bias ? lrn_nhwc_backward_kernel<T, true> : lrn_nhwc_backward_kernel<T, false>;
    return for_slices(p.shape.n, per_image, [&](int64_t first, int64_t count) {
      const int64_t at = first * p.shape.pixels * p.shape.c, total = count * per_image;
      kernel<<<static_cast<unsigned>(ceil_div(total, kThreads)), kThreads, 0, stream>>>(
          static_cast<const T*>(p.x) + at, static_cast<const T*>(p.bias),
          static_cast<const T*>(p.dy) + at, static_cast<T*>(p.out) + at, FastDiv(vectors),
          static_cast<uint32_t>(total), LrnConstants(p.shape));
      return cudaGetLastError();
    });
  });
}

}  // namespace cnnkernels
