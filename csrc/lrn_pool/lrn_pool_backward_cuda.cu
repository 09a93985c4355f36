// Backward of the fused LRN and 3x3/2 max-pool, channels_last, from x, dy and the offsets alone: no
// intermediate gradient goes through memory. Thread = one 16-byte channel vector of 2 x 2 input
// pixels, which the same 2 x 2 windows reach. Each window's dy and offsets are read once, with two
// channels on each side; per pixel the gradient of the LRN's output is gathered from them (oh, then
// ow), then the LRN's backward follows as in lrn_nhwc_backward. Grid flat over (n, block row, block
// column, vector), the vector fastest. No shared memory, no atomics.
#include "common/dispatch.cuh"
#include "common/fast_div.h"
#include "common/lrn_math.cuh"
#include "lrn_pool/lrn_pool.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 128;
constexpr int K = 3, S = 2, kHalo = 2;

struct Args {
  const void* x;
  const void* bias;
  const void* dy;
  const uint8_t* offsets;
  void* dx;
  int h, w, vectors, oh, ow, pad_h, pad_w;
  FastDiv by_vectors, by_blocks_w, by_blocks_h;
  uint32_t total;
};

// dy and offsets of one window for a vector and two channels on each side.
template <class T>
struct Window {
  static constexpr int V = kVecSize<T>;
  Chunk<T, V> own;
  Chunk<T, kHalo> before, after;
  Chunk<uint8_t, V> own_offset;
  Chunk<uint8_t, kHalo> before_offset, after_offset;

  __device__ void load(const T* dy, const uint8_t* offsets, bool ok, bool left, bool right) {
    own = Chunk<T, V>::filled(0u);
    before = after = Chunk<T, kHalo>::filled(0u);
    own_offset = Chunk<uint8_t, V>::filled(~0u);  // "no gradient"
    before_offset = after_offset = Chunk<uint8_t, kHalo>::filled(~0u);
    if (!ok) return;
    own.load(dy), own_offset.load(offsets);
    if (left) before.load(dy - kHalo), before_offset.load(offsets - kHalo);
    if (right) after.load(dy + V), after_offset.load(offsets + V);
  }
  // Channel i of the vector with its halo: i in [0, V + 2 * kHalo).
  __device__ float grad(int i) const {
    return i < kHalo       ? before.element(i)
           : i < kHalo + V ? own.element(i - kHalo)
                           : after.element(i - kHalo - V);
  }
  __device__ int offset(int i) const {
    return i < kHalo       ? before_offset.byte(i)
           : i < kHalo + V ? own_offset.byte(i - kHalo)
                           : after_offset.byte(i - kHalo - V);
  }
};

template <class T, bool kBias>
__global__ void __launch_bounds__(kThreads)
    lrn_pool_backward_kernel(const Args a, const LrnConstants lrn) {
  constexpr int V = kVecSize<T>, kT = V + 2 * kHalo, kX = V + 4 * kHalo;
  uint32_t vector = blockIdx.x * kThreads + threadIdx.x;
  if (vector >= a.total) return;
  uint32_t block_w = a.by_vectors.split(vector);
  uint32_t block_h = a.by_blocks_w.split(block_w);
  const int64_t n = a.by_blocks_h.split(block_h);
  const bool left = vector > 0, right = static_cast<int>(vector) + 1 < a.vectors;
  const int channels = a.vectors * V;
  const T* bias = static_cast<const T*>(a.bias) + vector * V;

  // windows[q][r]: output row block_h - 1 + q, output column block_w - 1 + r.
  Window<T> windows[S][S];
#pragma unroll
  for (int q = 0; q < S; ++q)
#pragma unroll
    for (int r = 0; r < S; ++r) {
      const int oh = static_cast<int>(block_h) - 1 + q, ow = static_cast<int>(block_w) - 1 + r;
      const bool ok = static_cast<unsigned>(oh) < static_cast<unsigned>(a.oh) &&
                      static_cast<unsigned>(ow) < static_cast<unsigned>(a.ow);
      const int64_t at = ((n * a.oh + oh) * a.ow + ow) * channels + vector * V;
      windows[q][r].load(static_cast<const T*>(a.dy) + at, a.offsets + at, ok, left, right);
    }

  const float factor = -2.f * lrn.scale * lrn.beta;
#pragma unroll
  for (int i = 0; i < S; ++i)
#pragma unroll
    for (int j = 0; j < S; ++j) {
      const int h = static_cast<int>(block_h) * S + i - a.pad_h;
      const int w = static_cast<int>(block_w) * S + j - a.pad_w;
      if (static_cast<unsigned>(h) >= static_cast<unsigned>(a.h) ||
          static_cast<unsigned>(w) >= static_cast<unsigned>(a.w))
        continue;
      const int64_t at = ((n * a.h + h) * a.w + w) * channels + vector * V;
      const T* p = static_cast<const T*>(a.x) + at;
      Chunk<T, V> own;
      auto before = Chunk<T, 2 * kHalo>::filled(0u), after = before;
      own.load(p);
      if (left) before.load(p - 2 * kHalo);
      if (right) after.load(p + V);

      float v[kX], q[kX], sum[kT], t[kT], direct[V];
      TwoFloats d[kT];
      lrn_input<kBias>(own, bias, true, lrn.relu, v + 2 * kHalo);
      lrn_input<kBias>(before, bias - 2 * kHalo, left, lrn.relu, v);
      lrn_input<kBias>(after, bias + V, right, lrn.relu, v + 2 * kHalo + V);
#pragma unroll
      for (int e = 0; e < kX; ++e) q[e] = product(v[e], v[e]);
      sums_of_5<kT>(q, sum);
      denominators<T, kT>(v, sum, lrn, d);
#pragma unroll
      for (int e = 0; e < kT; ++e) {
        float grad = 0.f;
#pragma unroll
        for (int wq = 0; wq < S; ++wq)
#pragma unroll
          for (int wr = 0; wr < S; ++wr) {
            const int kh = i + S * (1 - wq), kw = j + S * (1 - wr);
            if (kh < K && kw < K && windows[wq][wr].offset(e) == kh * K + kw)
              grad += windows[wq][wr].grad(e);
          }
        float power, power1;
        LrnPower<T>::both(d[e], lrn, power, power1);
        t[e] = product(grad * v[kHalo + e], power1);
        if (e >= kHalo && e < kHalo + V) direct[e - kHalo] = product(grad, power);
      }
      sums_of_5<V>(t, sum);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        direct[e] = fmaf(factor * v[2 * kHalo + e], sum[e], direct[e]);
        if (lrn.relu && v[2 * kHalo + e] <= 0.f) direct[e] = 0.f;
      }
      Chunk<T, V>::rounded(direct).store(static_cast<T*>(a.dx) + at);
    }
}

}  // namespace

cudaError_t launch_lrn_pool_backward(const LrnPoolBackwardParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    const PoolShape& s = p.pool;
    Args a{p.x,  p.bias, p.dy,    p.offsets, p.dx, s.h, s.w, static_cast<int>(s.c / kVecSize<T>),
           s.oh, s.ow,   s.pad_h, s.pad_w};
    const int64_t blocks_w = ceil_div(s.w + s.pad_w, S), blocks_h = ceil_div(s.h + s.pad_h, S);
    a.by_vectors = FastDiv(a.vectors);
    a.by_blocks_w = FastDiv(blocks_w), a.by_blocks_h = FastDiv(blocks_h);
    const int64_t per_image = blocks_w * blocks_h * a.vectors;
    auto* kernel = p.bias ? lrn_pool_backward_kernel<T, true> : lrn_pool_backward_kernel<T, false>;
    return for_slices(s.n, per_image, [&](int64_t first, int64_t count) {
      const int64_t windows = first * s.c * s.oh * s.ow, pixels = first * s.c * s.h * s.w;
      a.x = static_cast<const T*>(p.x) + pixels;
      a.dy = static_cast<const T*>(p.dy) + windows;
      a.offsets = p.offsets + windows;
      a.dx = static_cast<T*>(p.dx) + pixels;
      a.total = static_cast<uint32_t>(count * per_image);
      kernel<<<static_cast<unsigned>(ceil_div(a.total, kThreads)), kThreads, 0, stream>>>(
          a, LrnConstants(p.lrn));
      return cudaGetLastError();
    });
  });
}

}  // namespace cnnkernels
