// Max-pool 3x3/1 backward, NCHW: nine windows per pixel, bound by instructions.
// Block = a few whole planes, or a band of input rows of one plane; flat copies bring gradients and
// offset bytes into shared memory at any alignment, results are staged there and flushed in 16-byte
// stores. Item = four adjacent columns of a strip of rows: it walks down the windows and keeps the
// three rows they reach as fp32 sums in registers, so a window is read 1.5 times, not 4.5.
// Columns outside the output are read clamped and marked "no gradient". Sums in the order oh, ow.
#include "common/dispatch.cuh"
#include "common/fast_div.h"
#include "common/plane_tile.cuh"
#include "common/ptx.cuh"
#include "max_pool2d/max_pool2d.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 128;
constexpr int K = 3, kColumns = 4, kWindows = kColumns + K - 1;

struct Args {
  const void* dy;
  const uint8_t* offsets;
  void* dx;
  int64_t planes;
  int h, w, oh, ow, pad_h, pad_w;
  plan::PlaneTile tile;  // rows: input rows
  int strip;             // input rows per item
  FastDiv by_bands, by_groups, by_strips;
  int offsets_at, dx_at;
};

template <class T>
__global__ void __launch_bounds__(kThreads) max_pool2d_nchw_backward_s1_kernel(const Args a) {
  extern __shared__ __align__(16) char shared[];

  // The tile: planes, input rows h_lo .. h_hi, window rows o_lo .. o_hi.
  uint32_t band = blockIdx.x;
  const int64_t plane0 = int64_t{a.by_bands.split(band)} * a.tile.planes;
  const int planes = static_cast<int>(min(int64_t{a.tile.planes}, a.planes - plane0));
  const int h_lo = band * a.tile.rows, h_hi = min(a.h, h_lo + a.tile.rows), rows = h_hi - h_lo;
  const bool banded = a.tile.bands > 1;
  const int o_lo = banded ? min(max(0, h_lo + a.pad_h - K + 1), a.oh) : 0;
  const int o_hi = banded ? max(o_lo, min(a.oh, h_hi + a.pad_h)) : a.oh;
  const int window_rows = o_hi - o_lo;
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

  const int items = planes * a.by_strips.divisor * a.by_groups.divisor;
  for (int item = threadIdx.x; item < items; item += kThreads) {
    uint32_t group = item;
    uint32_t strip = a.by_groups.split(group);
    const int plane = a.by_strips.split(strip);
    const int h0 = h_lo + strip * a.strip, h1 = min(h0 + a.strip, h_hi), w0 = group * kColumns;

    // The windows of a row that reach the columns: clamped, and a mark for those outside.
    int at[kWindows], outside[kWindows];
    const int oh0 = h0 + a.pad_h - (K - 1);  // first window row that reaches h0
#pragma unroll
    for (int i = 0; i < kWindows; ++i) {
      const int ow = w0 + a.pad_w - (K - 1) + i, column = min(max(ow, 0), a.ow - 1);
      at[i] = (plane * window_rows + oh0 - o_lo) * a.ow + column;
      outside[i] = ow == column ? 0 : kNoGradient;
      keep(at[i]), keep(outside[i]);
    }
    T* out = dx_tile + (plane * rows + h0 - h_lo) * a.w + w0;
    const int columns = min(kColumns, a.w - w0);

    // sum[(h - h0) % 3] belongs to input row h; window row oh reaches rows oh - pad .. + 2.
    float sum[K][kColumns] = {};
    for (int h = h0 - (K - 1); h < h1; h += K) {
#pragma unroll
      for (int step = 0; step < K; ++step) {
        const int oh = h + step + a.pad_h;
        if (oh >= o_lo && oh < o_hi) {
#pragma unroll
          for (int i = 0; i < kWindows; ++i) {
            const float g = to_float(dy[at[i]]);
            const uint32_t bits = tap_bits(offsets[at[i]] | outside[i]);
#pragma unroll
            for (int kh = 0; kh < K; ++kh)
#pragma unroll
              for (int j = 0; j < kColumns; ++j) {
                const int kw = j + K - 1 - i;
                if (kw < 0 || kw >= K) continue;
                if (has_tap(bits, kh * K + kw)) sum[(1 + step + kh) % K][j] += g;
              }
          }
        }
#pragma unroll
        for (int i = 0; i < kWindows; ++i) at[i] += a.ow, keep(at[i]);
        float (&done)[kColumns] = sum[(1 + step) % K];
        if (h + step >= h0 && h + step < h1) {
#pragma unroll
          for (int j = 0; j < kColumns; ++j)
            if (j < columns) out[j] = from_float<T>(done[j]);
          out += a.w;
        }
#pragma unroll
        for (int j = 0; j < kColumns; ++j) done[j] = 0.f;
      }
    }
  }
  __syncthreads();
  tile_store(dx, dx_tile, planes * rows * a.w, kThreads);
}

}  // namespace

cudaError_t launch_max_pool2d_backward_nchw_s1(const MaxPoolBackwardParams& p,
                                               cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    const PoolShape& s = p.shape;
    Args a{p.dy,    static_cast<const uint8_t*>(p.offsets),
           p.dx,    s.n * s.c,
           s.h,     s.w,
           s.oh,    s.ow,
           s.pad_h, s.pad_w};
    const int64_t bytes = sizeof(T);
    a.tile = plan::plane_tile(s.h * s.w * bytes, s.h, s.w * bytes, a.planes);
    const int64_t groups = ceil_div(s.w, kColumns);
    a.strip = plan::strip_rows(a.tile.rows, a.tile.planes * groups, kThreads);
    a.by_bands = FastDiv(a.tile.bands), a.by_groups = FastDiv(groups);
    a.by_strips = FastDiv(ceil_div(a.tile.rows, a.strip));
    const int64_t window_rows = a.tile.bands > 1 ? a.tile.rows + K - 1 : s.oh;
    const int64_t windows = a.tile.planes * window_rows * s.ow;
    a.offsets_at = tile_reserve(windows * bytes);
    a.dx_at = a.offsets_at + tile_reserve(windows);
    const int shared = a.dx_at + tile_reserve(int64_t{a.tile.planes} * a.tile.rows * s.w * bytes);
    auto* kernel = max_pool2d_nchw_backward_s1_kernel<T>;
    const cudaError_t error = allow_shared(kernel, shared);
    if (error != cudaSuccess) return error;
    const int64_t blocks = ceil_div(a.planes, a.tile.planes) * a.tile.bands;
    if (blocks > kMaxThreads) return cudaErrorInvalidValue;
    kernel<<<static_cast<unsigned>(blocks), kThreads, shared, stream>>>(a);
    return cudaGetLastError();
  });
}

}  // namespace cnnkernels
