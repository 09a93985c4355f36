// Max-pool backward, channels_last (3x3/2, 2x2/2, 3x3/1): a deterministic gather without atomics.
// Thread = one 16-byte channel vector of 2 x 2 input pixels; it reads the windows that reach them
// once (gradient and offset byte), a row of them at a time, and compares each offset with the taps
// that lead to its pixels, all known at compile time. fp32 sums, in the order oh, ow. Grid flat
// over (n, block row, block column, vector), the vector fastest. No shared memory. 3x3/1 is bound
// by its 9 comparisons per element: everything else is kept out of the inner loops.
#include "common/dispatch.cuh"
#include "common/fast_div.h"
#include "common/ptx.cuh"
#include "common/words.cuh"
#include "max_pool2d/max_pool2d.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 128;
constexpr int kBlock = 2;  // input pixels per dimension

struct Args {
  const void* dy;
  const uint8_t* offsets;
  void* dx;
  int h, w, vectors, oh, ow, pad_h, pad_w;
  FastDiv by_vectors, by_blocks_w, by_blocks_h;
  uint32_t total;
};

// Blocks per multiprocessor for 3x3/1 in 16 bit: 72 registers (80 on sm_80, which would spill) let
// the compiler load a row of windows while it works on the one before.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kResident = 6;
#else
constexpr int kResident = 7;
#endif

template <class T, int K, int S>
__global__ void __launch_bounds__(kThreads, S == 1 && sizeof(T) == 2 ? kResident : 9)
    max_pool2d_nhwc_backward_kernel(const Args a) {
  constexpr int V = kVecSize<T>;
  // Windows per dimension that reach a block: kFirst .. kLast around the block's own.
  constexpr int kFirst = 1 - (K + S - 1) / S, kLast = kBlock / S, kWindows = kLast - kFirst;
  uint32_t vector = blockIdx.x * kThreads + threadIdx.x;
  if (vector >= a.total) return;
  uint32_t block_w = a.by_vectors.split(vector);
  uint32_t block_h = a.by_blocks_w.split(block_w);
  const int64_t n = a.by_blocks_h.split(block_h);

  const int oh = static_cast<int>(block_h) * kLast + kFirst;
  const int ow = static_cast<int>(block_w) * kLast + kFirst;
  const uint32_t pixel = a.vectors;
  const int64_t window_row = int64_t{a.ow} * pixel;
  const int64_t window = (n * a.oh + oh) * window_row + int64_t{ow} * pixel + vector;
  const uint4* dy = static_cast<const uint4*>(a.dy) + window;
  const uint8_t* offsets = a.offsets + window * V;

  float sum[kBlock][kBlock][V] = {};
#pragma unroll
  for (int q = 0; q < kWindows; ++q, dy += window_row, offsets += window_row * V) {
    const bool row_ok = static_cast<unsigned>(oh + q) < static_cast<unsigned>(a.oh);
    Chunk<T, V> grad[kWindows];
    Chunk<uint8_t, V> offset[kWindows];
#pragma unroll
    for (int r = 0; r < kWindows; ++r) {
      grad[r] = Chunk<T, V>::filled(0u);
      offset[r] = Chunk<uint8_t, V>::filled(~0u);  // "no gradient"
      if (row_ok && static_cast<unsigned>(ow + r) < static_cast<unsigned>(a.ow)) {
        grad[r].load(dy + r * pixel);
        offset[r].load(offsets + r * pixel * V);
      }
    }
#pragma unroll
    for (int r = 0; r < kWindows; ++r)
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const float g = grad[r].element(e);
#pragma unroll
        for (int i = 0; i < kBlock; ++i)
#pragma unroll
          for (int j = 0; j < kBlock; ++j) {
            const int kh = i - S * (q + kFirst), kw = j - S * (r + kFirst);
            if (kh >= 0 && kh < K && kw >= 0 && kw < K)
              add_where_byte(sum[i][j][e], g, offset[r].w[e / 4], e % 4, kh * K + kw);
          }
      }
  }

#pragma unroll
  for (int i = 0; i < kBlock; ++i)
#pragma unroll
    for (int j = 0; j < kBlock; ++j) {
      const int h = static_cast<int>(block_h) * kBlock + i - a.pad_h;
      const int w = static_cast<int>(block_w) * kBlock + j - a.pad_w;
      if (static_cast<unsigned>(h) < static_cast<unsigned>(a.h) &&
          static_cast<unsigned>(w) < static_cast<unsigned>(a.w))
        Chunk<T, V>::rounded(sum[i][j]).store(static_cast<uint4*>(a.dx) +
                                              ((n * a.h + h) * a.w + w) * a.vectors + vector);
    }
}

}  // namespace

cudaError_t launch_max_pool2d_backward_nhwc(const MaxPoolBackwardParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    const PoolShape& s = p.shape;
    Args a{p.dy, nullptr, p.dx,    s.h,    s.w, static_cast<int>(s.c / kVecSize<T>),
           s.oh, s.ow,    s.pad_h, s.pad_w};
    const int64_t blocks_w = ceil_div(s.w + s.pad_w, kBlock);
    const int64_t blocks_h = ceil_div(s.h + s.pad_h, kBlock);
    a.by_vectors = FastDiv(a.vectors);
    a.by_blocks_w = FastDiv(blocks_w), a.by_blocks_h = FastDiv(blocks_h);
    const int64_t per_image = blocks_w * blocks_h * a.vectors;
    auto* kernel = s.kernel_h == 2   ? max_pool2d_nhwc_backward_kernel<T, 2, 2>
                   : s.stride_h == 2 ? max_pool2d_nhwc_backward_kernel<T, 3, 2>
                                     : max_pool2d_nhwc_backward_kernel<T, 3, 1>;
    return for_slices(s.n, per_image, [&](int64_t first, int64_t count) {
      const int64_t windows = first * s.c * s.oh * s.ow;
      a.dy = static_cast<const T*>(p.dy) + windows;
      a.offsets = static_cast<const uint8_t*>(p.offsets) + windows;
      a.dx = static_cast<T*>(p.dx) + first * s.c * s.h * s.w;
      a.total = static_cast<uint32_t>(count * per_image);
      kernel<<<static_cast<unsigned>(ceil_div(a.total, kThreads)), kThreads, 0, stream>>>(a);
      return cudaGetLastError();
    });
  });
}

}  // namespace cnnkernels
