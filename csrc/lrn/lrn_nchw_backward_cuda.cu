// LRN backward, NCHW, window of 5, from x and dy alone, optional bias and ReLU in front:
//   dx = dy d^-b - 2 alpha b / size * v * sum over the window of t,  t = dy v d^(-b-1).
// As the forward kernel: block = a range of pixels, thread = two pixels walking the channels, rows
// of 8 channels of x and dy staged by asynchronous copies one stage ahead, results staged and
// flushed in 16-byte stores. Squares, t and dy d^-b of the window stay in registers, so each power
// is computed once. Channel c is read when c - 4 is written.
#include "common/dispatch.cuh"
#include "common/lrn_math.cuh"
#include "common/plane_tile.cuh"
#include "lrn/lrn.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kStage = 8;                   // channels per stage
constexpr int kHalf = 2, kLag = 2 * kHalf;  // of the window; channels between read and write
constexpr int P = 2;                        // pixels per thread
template <class T>
constexpr int kRowBytes = tile_reserve(kThreads * P * sizeof(T));

struct Args {
  const void* x;
  const void* bias;
  const void* dy;
  void* dx;
  int64_t images, channels, plane;
  plan::LrnTile tile;
};

template <class T, bool kBias>
__global__ void __launch_bounds__(kThreads)
    lrn_nchw_backward_kernel(const Args a, const LrnConstants lrn) {
  extern __shared__ __align__(16) char shared[];  // 2 stages of x, 2 of dy, 1 of dx
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int64_t block = blockIdx.x;
  const int c0 = static_cast<int>(block % a.tile.channel_tiles) * a.tile.channels;
  block /= a.tile.channel_tiles;
  const int64_t p0 = block % a.tile.pixel_tiles * a.tile.pixels, n = block / a.tile.pixel_tiles;
  const int pixels = static_cast<int>(min(int64_t{a.tile.pixels}, a.plane - p0));
  const int channels = static_cast<int>(a.channels);
  const int c1 = min(channels, c0 + a.tile.channels);
  const int64_t numel = a.images * a.channels * a.plane, at = n * a.channels * a.plane + p0;
  const T* x_first = static_cast<const T*>(a.x);
  const T* dy_first = static_cast<const T*>(a.dy);
  const T* x = x_first + at;
  const T* dy = dy_first + at;
  T* dx = static_cast<T*>(a.dx) + at;
  const T* bias = static_cast<const T*>(a.bias);

  const int begin = max(0, c0 - kLag), end = c1 + kLag;
  auto slot_row = [&](int kind, int slot, int r) {  // kind 0: x, 1: dy, 2: dx (slot 0 only)
    return shared + ((2 * kind + slot) * kStage + r) * kRowBytes<T>;
  };
  auto load_stage = [&](int c_stage, int slot) {
    for (int r = warp; r < kStage; r += kWarps)
      if (c_stage + r < min(end, channels)) {
        const int64_t row = (c_stage + r) * a.plane;
        row_load(slot_row(0, slot, r), x + row, pixels, x_first, x_first + numel, lane);
        row_load(slot_row(1, slot, r), dy + row, pixels, dy_first, dy_first + numel, lane);
      }
    copy_async_commit();
  };

  int pixel[P];
#pragma unroll
  for (int i = 0; i < P; ++i)
    pixel[i] = min(static_cast<int>(threadIdx.x) + i * kThreads, pixels - 1);
  // v[k], q[k], g[k]: value, square, gradient of channel c - k; t[k], direct[k] of c - kHalf - k.
  float v[kLag + 1][P] = {}, q[kLag + 1][P] = {}, g[kHalf + 1][P] = {};
  float t[kLag + 1][P] = {}, direct[kHalf + 1][P] = {};
  const float factor = -2.f * lrn.scale * lrn.beta;

  load_stage(begin, 0);
  for (int c_stage = begin, slot = 0; c_stage < end; c_stage += kStage, slot ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // the stage is here; the other one and the staged outputs are free
    load_stage(c_stage + kStage, slot ^ 1);
#pragma unroll
    for (int r = 0; r < kStage; ++r) {
      const int c = c_stage + r, out = c - kLag;
      const T* x_row = tile_start(slot_row(0, slot, r), x + c * a.plane);
      const T* dy_row = tile_start(slot_row(1, slot, r), dy + c * a.plane);
      T* out_row = tile_start(slot_row(2, 0, r), dx + out * a.plane);
      const bool inside = c < channels;
      const float b = kBias && inside ? to_float(bias[c]) : 0.f;
#pragma unroll
      for (int i = 0; i < P; ++i) {
#pragma unroll
        for (int k = kLag; k > 0; --k)
          v[k][i] = v[k - 1][i], q[k][i] = q[k - 1][i], t[k][i] = t[k - 1][i];
#pragma unroll
        for (int k = kHalf; k > 0; --k) g[k][i] = g[k - 1][i], direct[k][i] = direct[k - 1][i];
        float value = inside ? to_float(x_row[pixel[i]]) + b : 0.f;
        if (lrn.relu) value = max_nan(value, 0.f);
        v[0][i] = value, q[0][i] = product(value, value);
        g[0][i] = inside ? to_float(dy_row[pixel[i]]) : 0.f;

        // Channel c - kHalf has its window now.
        const float squares = (q[4][i] + q[3][i]) + (q[2][i] + q[1][i]) + q[0][i];
        float power, power1;
        FastPower<T>::both(fmaf(lrn.scale, squares, lrn.k), lrn.beta, power, power1);
        t[0][i] = product(g[kHalf][i] * v[kHalf][i], power1);
        direct[0][i] = product(g[kHalf][i], power);

        // Channel c - kLag has its window of t now.
        const float sum = (t[4][i] + t[3][i]) + (t[2][i] + t[1][i]) + t[0][i];
        float result = fmaf(factor * v[kLag][i], sum, direct[kHalf][i]);
        if (lrn.relu && v[kLag][i] <= 0.f) result = 0.f;
        if (static_cast<int>(threadIdx.x) + i * kThreads < pixels)
          out_row[pixel[i]] = from_float<T>(result);
      }
    }
    __syncthreads();
    for (int r = warp; r < kStage; r += kWarps) {
      const int out = c_stage + r - kLag;
      if (out >= c0 && out < c1) row_store(dx + out * a.plane, slot_row(2, 0, r), pixels, lane);
    }
  }
}

}  // namespace

cudaError_t launch_lrn_backward_nchw(const LrnParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    Args a{p.x, p.bias, p.dy, p.out, p.shape.n, p.shape.c, p.shape.pixels};
    a.tile = plan::lrn_tile(p.shape, kThreads * P, kStage);
    auto* kernel = p.bias ? lrn_nchw_backward_kernel<T, true> : lrn_nchw_backward_kernel<T, false>;
    const int bytes = 5 * kStage * kRowBytes<T>;
    const cudaError_t error = allow_shared(kernel, bytes);
    if (error != cudaSuccess) return error;
    const int64_t blocks = a.images * a.tile.pixel_tiles * a.tile.channel_tiles;
    if (blocks > kMaxThreads) return cudaErrorInvalidValue;
    kernel<<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(a, LrnConstants(p.shape));
    return cudaGetLastError();
  });
}

}  // namespace cnnkernels
