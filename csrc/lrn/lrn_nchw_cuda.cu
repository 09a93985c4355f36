// LRN forward, NCHW, window of 5, optional bias and ReLU in front.
// Block = a range of pixels of one image and (nearly always) all channels. Thread = a few pixels;
// it walks the channels with the window's squares in registers, so each is computed once. Rows of 8
// channels come into shared memory by 16-byte asynchronous copies, one stage ahead, at any
// alignment (odd planes!), and results leave through shared memory in 16-byte stores: planes of odd
// size allow no vectors otherwise, and partial sectors are what costs the time.
#include "common/dispatch.cuh"
#include "common/lrn_math.cuh"
#include "common/plane_tile.cuh"
#include "lrn/lrn.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kStage = 8;  // channels per stage
constexpr int kHalf = 2;   // of the window
template <class T>
constexpr int kPixels = sizeof(T) == 2 ? 4 : 2;  // per thread
template <class T>
constexpr int kRowBytes = tile_reserve(kThreads * kPixels<T> * sizeof(T));

struct Args {
  const void* x;
  const void* bias;
  void* y;
  int64_t images, channels, plane;  // plane: pixels
  plan::LrnTile tile;
};

template <class T, bool kBias>
__global__ void __launch_bounds__(kThreads) lrn_nchw_kernel(const Args a, const LrnConstants lrn) {
  constexpr int P = kPixels<T>;
  extern __shared__ __align__(16) char shared[];  // 2 input stages, 1 output stage
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int64_t block = blockIdx.x;
  const int c0 = static_cast<int>(block % a.tile.channel_tiles) * a.tile.channels;
  block /= a.tile.channel_tiles;
  const int64_t p0 = block % a.tile.pixel_tiles * a.tile.pixels, n = block / a.tile.pixel_tiles;
  const int pixels = static_cast<int>(min(int64_t{a.tile.pixels}, a.plane - p0));
  const int channels = static_cast<int>(a.channels);
  const int c1 = min(channels, c0 + a.tile.channels);
  const T* first = static_cast<const T*>(a.x);
  const T* last = first + a.images * a.channels * a.plane;
  const T* x = first + n * a.channels * a.plane + p0;
  T* y = static_cast<T*>(a.y) + n * a.channels * a.plane + p0;
  const T* bias = static_cast<const T*>(a.bias);

  const int begin = max(0, c0 - kHalf), end = c1 + kHalf;  // channels walked; beyond C they are 0
  auto load_stage = [&](int c_stage, int slot) {
    for (int r = warp; r < kStage; r += kWarps)
      if (c_stage + r < min(end, channels))
        row_load(shared + (slot * kStage + r) * kRowBytes<T>, x + (c_stage + r) * a.plane, pixels,
                 first, last, lane);
    copy_async_commit();
  };

  int pixel[P];
#pragma unroll
  for (int i = 0; i < P; ++i)
    pixel[i] = min(static_cast<int>(threadIdx.x) + i * kThreads, pixels - 1);
  // v[k], q[k]: value and square of channel c - k.
  float v[kHalf + 1][P] = {}, q[2 * kHalf + 1][P] = {};

  load_stage(begin, 0);
  for (int c_stage = begin, slot = 0; c_stage < end; c_stage += kStage, slot ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // the stage is here; the other one and the staged outputs are free
    load_stage(c_stage + kStage, slot ^ 1);
#pragma unroll
    for (int r = 0; r < kStage; ++r) {
      const int c = c_stage + r, out = c - kHalf;
      const T* row = tile_start(shared + (slot * kStage + r) * kRowBytes<T>, x + c * a.plane);
      T* out_row = tile_start(shared + (2 * kStage + r) * kRowBytes<T>, y + out * a.plane);
      const float b = kBias && c < channels ? to_float(bias[c]) : 0.f;
#pragma unroll
      for (int i = 0; i < P; ++i) {
        float value = c < channels ? to_float(row[pixel[i]]) + b : 0.f;
        if (lrn.relu) value = max_nan(value, 0.f);
#pragma unroll
        for (int k = kHalf; k > 0; --k) v[k][i] = v[k - 1][i];
#pragma unroll
        for (int k = 2 * kHalf; k > 0; --k) q[k][i] = q[k - 1][i];
        v[0][i] = value, q[0][i] = product(value, value);
        const float sum = (q[4][i] + q[3][i]) + (q[2][i] + q[1][i]) + q[0][i];
        const float result =
            v[kHalf][i] * FastPower<T>::minus_beta(fmaf(lrn.scale, sum, lrn.k), lrn.beta);
        if (static_cast<int>(threadIdx.x) + i * kThreads < pixels)
          out_row[pixel[i]] = from_float<T>(result);
      }
    }
    __syncthreads();
    for (int r = warp; r < kStage; r += kWarps) {
      const int out = c_stage + r - kHalf;
      if (out >= c0 && out < c1)
        row_store(y + out * a.plane, shared + (2 * kStage + r) * kRowBytes<T>, pixels, lane);
    }
  }
}

}  // namespace

cudaError_t launch_lrn_nchw(const LrnParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    Args a{p.x, p.bias, p.out, p.shape.n, p.shape.c, p.shape.pixels};
    a.tile = plan::lrn_tile(p.shape, kThreads * kPixels<T>, kStage);
    auto* kernel = p.bias ? lrn_nchw_kernel<T, true> : lrn_nchw_kernel<T, false>;
    const int bytes = 3 * kStage * kRowBytes<T>;
    const cudaError_t error = allow_shared(kernel, bytes);
    if (error != cudaSuccess) return error;
    const int64_t blocks = a.images * a.tile.pixel_tiles * a.tile.channel_tiles;
    if (blocks > kMaxThreads) return cudaErrorInvalidValue;
    kernel<<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(a, LrnConstants(p.shape));
    return cudaGetLastError();
  });
}

}  // namespace cnnkernels
