// Max-pool backward, NCHW, stride 2 (3x3 and 2x2): a deterministic gather without atomics.
// Block = a few whole planes, or a band of 2-row units of one plane; gradients and offset bytes
// come into shared memory by flat copies at any alignment, results are staged there and flushed in
// 16-byte stores. Item = a strip of TR blocks of 2 x 2 input pixels; the windows that reach it are
// read once each, in the order oh, ow, and compared with taps known at compile time. fp32 sums.
#include "common/dispatch.cuh"
#include "common/fast_div.h"
#include "common/plane_tile.cuh"
#include "max_pool2d/max_pool2d.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 128;
constexpr int S = 2, TR = 4;

struct Args {
  const void* dy;
  const uint8_t* offsets;
  void* dx;
  int64_t planes;
  int h, w, oh, ow, pad_h, pad_w, units;
  plan::PlaneTile tile;  // rows: units of S input rows
  FastDiv by_bands, by_blocks, by_strips;
  int offsets_at, dx_at;
};

template <class T, int K>
__global__ void __launch_bounds__(kThreads, 12) max_pool2d_nchw_backward_kernel(const Args a) {
  constexpr int kReach = (K + S - 1) / S;
  extern __shared__ __align__(16) char shared[];

  // The tile: planes, units i0 .. i1, window rows o_lo .. o_hi, input rows h_lo .. h_hi.
  uint32_t band = blockIdx.x;
  const int64_t plane0 = int64_t{a.by_bands.split(band)} * a.tile.planes;
  const int planes = static_cast<int>(min(int64_t{a.tile.planes}, a.planes - plane0));
  const bool banded = a.tile.bands > 1;
  const int i0 = band * a.tile.rows, i1 = min(a.units, i0 + a.tile.rows);
  const int o_lo = banded ? min(max(0, i0 - kReach + 1), a.oh) : 0;
  const int o_hi = banded ? max(o_lo, min(a.oh, i1)) : a.oh;
  const int h_lo = banded ? max(0, i0 * S - a.pad_h) : 0;
  const int h_hi = banded ? min(a.h, i1 * S - a.pad_h) : a.h;
  const int window_rows = o_hi - o_lo, rows = h_hi - h_lo;
  const int64_t window0 = (plane0 * a.oh + o_lo) * a.ow;
  const int count = planes * window_rows * a.ow;
  const int64_t windows = a.planes * a.oh * a.ow;
  const T* dy_first = static_cast<const T*>(a.dy);
  const T* dy =
      tile_load(shared, dy_first + window0, count, dy_first, dy_first + windows, kThreads);
  const uint8_t* offsets = tile_load(shared + a.offsets_at, a.offsets + window0, count, a.offsets,
                                     a.offsets + windows, kThreads);
  T* dx = static_cast<T*>(a.dx) + (plane0 * a.h + h_lo) * a.w;
  T* dx_tile = tile_start(shared + a.dx_at, dx);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();

  const int items = planes * a.by_strips.divisor * a.by_blocks.divisor;
  for (int item = threadIdx.x; item < items; item += kThreads) {
    uint32_t block = item;
    uint32_t strip = a.by_blocks.split(block);
    const int plane = a.by_strips.split(strip);
    const int unit = strip * TR + i0, ow0 = block;

    float sum[TR * S][S] = {};
#pragma unroll
    for (int q = 1 - kReach; q < TR; ++q)
#pragma unroll
      for (int r = 1 - kReach; r <= 0; ++r) {
        const int oh = unit + q, ow = ow0 + r;
        const bool inside =
            oh >= o_lo && oh < o_hi && static_cast<unsigned>(ow) < static_cast<unsigned>(a.ow);
        const int at = (plane * window_rows + oh - o_lo) * a.ow + ow;
        float g = 0.f;
        int position = kNoGradient;
        if (inside) g = to_float(dy[at]), position = offsets[at];
#pragma unroll
        for (int i = 0; i < TR * S; ++i)
#pragma unroll
          for (int j = 0; j < S; ++j) {
            const int kh = i - S * q, kw = j - S * r;
            if (kh >= 0 && kh < K && kw < K && position == kh * K + kw) sum[i][j] += g;
          }
      }

#pragma unroll
    for (int i = 0; i < TR * S; ++i)
#pragma unroll
      for (int j = 0; j < S; ++j) {
        const int h = unit * S + i - a.pad_h, w = ow0 * S + j - a.pad_w;
        if (h >= h_lo && h < h_hi && static_cast<unsigned>(w) < static_cast<unsigned>(a.w))
          dx_tile[(plane * rows + h - h_lo) * a.w + w] = from_float<T>(sum[i][j]);
      }
  }
  __syncthreads();
  tile_store(dx, dx_tile, planes * rows * a.w, kThreads);
}

}  // namespace

cudaError_t launch_max_pool2d_backward_nchw(const MaxPoolBackwardParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    const PoolShape& s = p.shape;
    const int reach = (s.kernel_h + S - 1) / S;
    Args a{p.dy,    static_cast<const uint8_t*>(p.offsets),
           p.dx,    s.n * s.c,
           s.h,     s.w,
           s.oh,    s.ow,
           s.pad_h, s.pad_w};
    a.units = static_cast<int>(ceil_div(s.h + s.pad_h, S));
    const int64_t bytes = sizeof(T);
    a.tile = plan::plane_tile(s.h * s.w * bytes, a.units, S * s.w * bytes, a.planes);
    a.by_bands = FastDiv(a.tile.bands);
    a.by_blocks = FastDiv(ceil_div(s.w + s.pad_w, S));
    a.by_strips = FastDiv(ceil_div(a.tile.rows, TR));
    const int64_t window_rows = a.tile.bands > 1 ? a.tile.rows + reach - 1 : s.oh;
    const int64_t dx_rows = a.tile.bands > 1 ? int64_t{a.tile.rows} * S : s.h;
    const int64_t windows = a.tile.planes * window_rows * s.ow;
    a.offsets_at = tile_reserve(windows * bytes);
    a.dx_at = a.offsets_at + tile_reserve(windows);
    const int shared = a.dx_at + tile_reserve(a.tile.planes * dx_rows * s.w * bytes);
    auto* kernel = s.kernel_h == 3 ? max_pool2d_nchw_backward_kernel<T, 3>
                                   : max_pool2d_nchw_backward_kernel<T, 2>;
    const cudaError_t error = allow_shared(kernel, shared);
    if (error != cudaSuccess) return error;
    const int64_t blocks = ceil_div(a.planes, a.tile.planes) * a.tile.bands;
    if (blocks > kMaxThreads) return cudaErrorInvalidValue;
    kernel<<<static_cast<unsigned>(blocks), kThreads, shared, stream>>>(a);
    return cudaGetLastError();
  });
}

}  // namespace cnnkernels
