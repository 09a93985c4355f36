// LRN backward, NCHW, window of 5, from x and dy alone, optional bias and ReLU in front:
//   dx = dy d^-b - 2 alpha b / size * v * sum over the window of t,  t = dy v d^(-b-1).
// As the forward kernel: block = a range of pixels, thread = two pixels walking the channels, rows
// of 8 channels of x and dy (one per warp) staged by asynchronous copies one stage ahead, results
// staged and flushed in 16-byte stores a stage later, one barrier per stage. Squares, t and dy d^-b
// of the window stay in registers, so each power is computed once. Channel c is read when c - 4 is
// written.
#include "common/dispatch.cuh"
#include "common/lrn_math.cuh"
#include "common/plane_tile.cuh"
#include "lrn/lrn.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 256;
constexpr int kStage = kThreads / 32;       // channels per stage: one per warp
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
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 && !kBias ? 3 : 2)
    lrn_nchw_backward_kernel(const Args a, const LrnConstants lrn) {
  extern __shared__ __align__(16) char shared[];  // 2 stages each of x, dy, dx
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
  auto slot_row = [&](int kind, int slot, int r) {  // kind 0: x, 1: dy, 2: dx
    return shared + ((2 * kind + slot) * kStage + r) * kRowBytes<T>;
  };
  auto load_stage = [&](int c_stage, int slot) {
    const int c = c_stage + warp;
    if (c < min(end, channels)) {
      const int64_t row = c * a.plane;
      row_load(slot_row(0, slot, warp), x + row, pixels, x_first, x_first + numel, lane);
      row_load(slot_row(1, slot, warp), dy + row, pixels, dy_first, dy_first + numel, lane);
    } else {
      row_clear(slot_row(0, slot, warp), kRowBytes<T>, lane);
      row_clear(slot_row(1, slot, warp), kRowBytes<T>, lane);
    }
    copy_async_commit();
  };
  auto store_stage = [&](int c_stage, int slot) {
    const int c = c_stage + warp - kLag;
    if (c >= c0 && c < c1) row_store(dx + c * a.plane, slot_row(2, slot, warp), pixels, lane);
  };

  const uint32_t step = static_cast<uint32_t>(a.plane * sizeof(T));
  const uint32_t x_low = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(x));
  const uint32_t dy_low = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(dy));
  const uint32_t dx_low = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(dx));
  const float floor = lrn.relu ? 0.f : -INFINITY;
  const float cut = lrn.relu ? 0.f : NAN;  // at or below it the gradient is 0
  // Threads beyond the tile's pixels work on what lies there in their rows: nobody reads it.
  // Of pixel i: v[i][k], q[i][k], g[i][k]: value, square, gradient of channel c - k; t[i][k],
  // direct[i][k] of c - kHalf - k.
  float v[P][kLag + 1] = {}, q[P][kLag + 1] = {}, g[P][kHalf + 1] = {};
  float t[P][kLag + 1] = {}, direct[P][kHalf + 1] = {};
  const float factor = -2.f * lrn.scale * lrn.beta;

  load_stage(begin, 0);
  for (int c_stage = begin, slot = 0; c_stage < end; c_stage += kStage, slot ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this stage's input and the last one's results are here, the rest is free
    load_stage(c_stage + kStage, slot ^ 1);
    store_stage(c_stage - kStage, slot ^ 1);
#pragma unroll
    for (int r = 0; r < kStage; ++r) {
      const int c = c_stage + r, out = c - kLag;
      const T* x_row = row_start<T>(slot_row(0, slot, r), x_low, c, step);
      const T* dy_row = row_start<T>(slot_row(1, slot, r), dy_low, c, step);
      T* out_row = row_start<T>(slot_row(2, slot, r), dx_low, out, step);
      const float b = kBias && c < channels ? to_float(bias[c]) : 0.f;
#pragma unroll
      for (int i = 0; i < P; ++i) {
#pragma unroll
        for (int k = kLag; k > 0; --k)
          v[i][k] = v[i][k - 1], q[i][k] = q[i][k - 1], t[i][k] = t[i][k - 1];
#pragma unroll
        for (int k = kHalf; k > 0; --k) g[i][k] = g[i][k - 1], direct[i][k] = direct[i][k - 1];
        const int pixel = threadIdx.x + i * kThreads;
        const float value = max_nan(to_float(x_row[pixel]) + b, floor);
        v[i][0] = value, q[i][0] = product(value, value);
        g[i][0] = to_float(dy_row[pixel]);

        // Channel c - kHalf has its window now.
        const float squares = (q[i][4] + q[i][3]) + (q[i][2] + q[i][1]) + q[i][0];
        float power, power1;
        TwoFloats d;
        denominators<T, 1>(v[i], &squares, lrn, &d);
        LrnPower<T>::both(d, lrn, power, power1);
        t[i][0] = product(g[i][kHalf] * v[i][kHalf], power1);
        direct[i][0] = product(g[i][kHalf], power);

        // Channel c - kLag has its window of t now.
        const float sum = (t[i][4] + t[i][3]) + (t[i][2] + t[i][1]) + t[i][0];
        float result = fmaf(factor * v[i][kLag], sum, direct[i][kHalf]);
        if (v[i][kLag] <= cut) result = 0.f;
        out_row[pixel] = from_float<T>(result);
      }
    }
  }
  __syncthreads();
  const int stages = (end - begin + kStage - 1) / kStage;
  store_stage(begin + (stages - 1) * kStage, (stages - 1) & 1);
}

}  // namespace

cudaError_t launch_lrn_backward_nchw(const LrnParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    Args a{p.x, p.bias, p.dy, p.out, p.shape.n, p.shape.c, p.shape.pixels};
    a.tile = plan::lrn_tile(p.shape, kThreads * P - (kVecSize<T> - 1), kStage);
    auto* kernel = p.bias ? lrn_nchw_backward_kernel<T, true> : lrn_nchw_backward_kernel<T, false>;
    const int bytes = 6 * kStage * kRowBytes<T>;
    const cudaError_t error = allow_shared(kernel, bytes);
    if (error != cudaSuccess) return error;
    const int64_t blocks = a.images * a.tile.pixel_tiles * a.tile.channel_tiles;
    if (blocks > kMaxThreads) return cudaErrorInvalidValue;
    kernel<<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(a, LrnConstants(p.shape));
    return cudaGetLastError();
  });
}

}  // namespace cnnkernels
