// LRN forward, NCHW, window of 5, optional bias and ReLU in front.
// Block = a range of pixels of one image and (nearly always) all channels. Thread = two pixels; it
// walks the channels with the window's squares in registers, so each is computed once. Rows of 8
// channels (one per warp) come into shared memory by 16-byte asynchronous copies, one stage ahead,
// at any alignment (odd planes!); results leave through shared memory in 16-byte stores, a stage
// later, so one barrier per stage is enough. Partial sectors are what costs the time otherwise.
#include "common/dispatch.cuh"
#include "common/lrn_math.cuh"
#include "common/plane_tile.cuh"
#include "lrn/lrn.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 256;
constexpr int kStage = kThreads / 32;  // channels per stage: one per warp
constexpr int kHalf = 2;               // of the window
constexpr int P = 2;                   // pixels per thread
template <class T>
constexpr int kRowBytes = tile_reserve(kThreads * P * sizeof(T));

struct Args {
  const void* x;
  const void* bias;
  void* y;
  int64_t images, channels, plane;  // plane: pixels
  plan::LrnTile tile;
};

template <class T, bool kBias>
__global__ void __launch_bounds__(kThreads, 3)
    lrn_nchw_kernel(const Args a, const LrnConstants lrn) {
  extern __shared__ __align__(16) char shared[];  // 2 input stages, 2 output stages
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

  const int begin = max(0, c0 - kHalf), end = c1 + kHalf;  // channels walked; rows beyond C are 0
  auto row_at = [&](int kind, int slot, int r) {           // kind 0: input, 1: output
    return shared + ((2 * kind + slot) * kStage + r) * kRowBytes<T>;
  };
  auto load_stage = [&](int c_stage, int slot) {
    const int c = c_stage + warp;
    if (c < min(end, channels)) {
      row_load(row_at(0, slot, warp), x + c * a.plane, pixels, first, last, lane);
    } else {
      row_clear(row_at(0, slot, warp), kRowBytes<T>, lane);
    }
    copy_async_commit();
  };
  auto store_stage = [&](int c_stage, int slot) {
    const int c = c_stage + warp - kHalf;
    if (c >= c0 && c < c1) row_store(y + c * a.plane, row_at(1, slot, warp), pixels, lane);
  };

  const uint32_t step = static_cast<uint32_t>(a.plane * sizeof(T));
  const uint32_t x_low = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(x));
  const uint32_t y_low = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(y));
  const float floor = lrn.relu ? 0.f : -INFINITY;
  // Threads beyond the tile's pixels work on what lies there in their rows: nobody reads it.
  // v[i][k], q[i][k]: value and square of channel c - k of pixel i.
  float v[P][2 * kHalf + 1] = {}, q[P][2 * kHalf + 1] = {};

  load_stage(begin, 0);
  for (int c_stage = begin, slot = 0; c_stage < end; c_stage += kStage, slot ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this stage's input and the last one's results are here, the rest is free
    load_stage(c_stage + kStage, slot ^ 1);
    store_stage(c_stage - kStage, slot ^ 1);
#pragma unroll
    for (int r = 0; r < kStage; ++r) {
      const int c = c_stage + r, out = c - kHalf;
      const T* row = row_start<T>(row_at(0, slot, r), x_low, c, step);
      T* out_row = row_start<T>(row_at(1, slot, r), y_low, out, step);
      const float b = kBias && c < channels ? to_float(bias[c]) : 0.f;
#pragma unroll
      for (int i = 0; i < P; ++i) {
        const float value = max_nan(to_float(row[threadIdx.x + i * kThreads]) + b, floor);
#pragma unroll
        for (int k = 2 * kHalf; k > 0; --k) v[i][k] = v[i][k - 1], q[i][k] = q[i][k - 1];
        v[i][0] = value, q[i][0] = product(value, value);
        const float sum = (q[i][4] + q[i][3]) + (q[i][2] + q[i][1]) + q[i][0];
        TwoFloats d;
        denominators<T, 1>(v[i], &sum, lrn, &d);
        const float result = LrnPower<T>::scaled(v[i][kHalf], d, lrn);
        out_row[threadIdx.x + i * kThreads] = from_float<T>(result);
      }
    }
  }
  __syncthreads();
  const int stages = (end - begin + kStage - 1) / kStage;
  store_stage(begin + (stages - 1) * kStage, (stages - 1) & 1);
}

}  // namespace

cudaError_t launch_lrn_nchw(const LrnParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    Args a{p.x, p.bias, p.out, p.shape.n, p.shape.c, p.shape.pixels};
    a.tile = plan::lrn_tile(p.shape, kThreads * P - (kVecSize<T> - 1), kStage);
    auto* kernel = p.bias ? lrn_nchw_kernel<T, true> : lrn_nchw_kernel<T, false>;
    const int bytes = 4 * kStage * kRowBytes<T>;
    const cudaError_t error = allow_shared(kernel, bytes);
    if (error != cudaSuccess) return error;
    const int64_t blocks = a.images * a.tile.pixel_tiles * a.tile.channel_tiles;
    if (blocks > kMaxThreads) return cudaErrorInvalidValue;
    kernel<<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(a, LrnConstants(p.shape));
    return cudaGetLastError();
  });
}

}  // namespace cnnkernels
