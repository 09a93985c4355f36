// Max-pool backward, NCHW, windows 3x3/2, 2x2/2 and 3x3/1: a deterministic gather without atomics.
// Block = a few whole planes, or a band of rows of one plane; gradients and offset bytes come into
// shared memory by flat copies at any alignment, results are staged there and flushed in 16-byte
// stores. Item = some adjacent columns of a strip of rows: it walks down the windows, reads each
// once and keeps what the next rows get from it in registers. Windows outside the output are read
// where they would lie and marked "no gradient". Sums in the order oh, ow, in fp32; a sum of two
// 16-bit numbers is the same in 16 bits.
#include "common/dispatch.cuh"
#include "common/fast_div.h"
#include "common/plane_tile.cuh"
#include "common/words.cuh"
#include "max_pool2d/max_pool2d.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 128;
constexpr int kMargin = 16;  // bytes before and after a tile that may be read: multiple of 16

struct Args {
  const void* dy;
  const uint8_t* offsets;
  void* dx;
  int64_t planes;
  int h, w, oh, ow, pad_h, pad_w;
  plan::PlaneTile tile;  // rows: units, S input rows that start at unit * S - pad_h
  int units, strip;      // strip: units of an item
  FastDiv by_bands, by_columns, by_strips;
  int offsets_at, dx_at;
};

// An item: pointers to the window and the pixel at its first unit and column, and where they lie.
template <class T>
struct Item {
  const T* dy;
  const uint8_t* offsets;
  T* dx;
  int units, column, w;              // column: of windows; w: of pixels
  int window_row, h;                 // in the tile
  unsigned window_rows, pixel_rows;  // of the tile

  // Bits for has_tap: which of the columns from w are in the input.
  template <int kColumns>
  __device__ __forceinline__ int columns_inside(int width) const {
    int bits = 0;
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      if (static_cast<unsigned>(w + j) < static_cast<unsigned>(width)) bits |= 2 << j;
    keep(bits);
    return bits;
  }
};

// Stride 2. A unit's 2 x 2P pixels get gradients from the windows (unit, column ..) and, in their
// first row and column, from the row above and the column to the left. 16-bit gradients stay packed
// in words of P = 2 windows, until four of them meet in one pixel.
template <class T, int K>
__device__ __forceinline__ void gather_stride2(const Args& a, Item<T> item) {
  using W = Words<T>;
  using Raw = typename W::Raw;
  constexpr int P = W::kPerWord;
  int outside = 0, outside_left = 0;
#pragma unroll
  for (int e = 0; e < P; ++e) {
    const int mark = kNoGradient << (16 * e), column = item.column + e;
    if (column >= a.ow) outside |= mark;
    if (column < 1 || column > a.ow) outside_left |= mark;
  }
  keep(outside), keep(outside_left);
  const int inside = item.template columns_inside<2 * P>(a.w);
  // A word of windows from their first one's address; -0 becomes 0, as in a sum.
  auto gradients = [](const T* p) {
    const Raw* raw = reinterpret_cast<const Raw*>(p);
    return W::add(P == 2 ? raw[0] | uint32_t{raw[P - 1]} << 16 : raw[0], 0u);
  };
  auto positions = [](const uint8_t* p, int mark) {
    return (P == 2 ? p[0] | uint32_t{p[P - 1]} << 16 : p[0]) | mark;
  };
  auto store = [&](T* row, uint32_t first, uint32_t second) {
    Raw* raw = reinterpret_cast<Raw*>(row);
#pragma unroll
    for (int e = 0; e < P; ++e) {
      if (has_tap(inside, 2 * e)) raw[2 * e] = static_cast<Raw>(first >> (16 * e));
      if (has_tap(inside, 2 * e + 1)) raw[2 * e + 1] = static_cast<Raw>(second >> (16 * e));
    }
  };

  // From the windows above: in fp32 to the first column's pixels, and a word to the second's.
  float above[P] = {};
  uint32_t above_second = 0;
  constexpr int kLead = K == 3;
  item.dy -= kLead * a.ow, item.offsets -= kLead * a.ow, item.window_row -= kLead;
  for (int row = -kLead; row < item.units; ++row) {
    uint32_t own = 0, left = 0, at = 0, left_at = 0;
    if (static_cast<unsigned>(item.window_row++) < item.window_rows) {
      own = gradients(item.dy), at = positions(item.offsets, outside);
      if (K == 3)
        left = gradients(item.dy - 1), left_at = positions(item.offsets - 1, outside_left);
    }
    item.dy += a.ow, item.offsets += a.ow;
    if (row >= 0) {
      if (static_cast<unsigned>(item.h) < item.pixel_rows) {
        float sum[P];
        const uint32_t first = W::where(left, left_at, 2), second = W::where(own, at, 0);
#pragma unroll
        for (int e = 0; e < P; ++e)
          sum[e] = above[e] + W::element(first, e) + W::element(second, e);
        store(item.dx, K == 3 ? W::pack(sum) : second, W::add(above_second, W::where(own, at, 1)));
      }
      if (static_cast<unsigned>(item.h + 1) < item.pixel_rows)
        store(item.dx + a.w, W::add(W::where(left, left_at, 5), W::where(own, at, K)),
              W::where(own, at, K + 1));
      item.h += 2, item.dx += 2 * a.w;
    }
    if (K == 3) {
      const uint32_t first = W::where(left, left_at, 8), second = W::where(own, at, 6);
#pragma unroll
      for (int e = 0; e < P; ++e) above[e] = W::element(first, e) + W::element(second, e);
      above_second = W::where(own, at, 7);
    }
  }
}

// 3x3/1: nine windows per pixel, bound by instructions. Four columns; the three rows a window
// reaches are fp32 sums in registers.
template <class T>
__device__ __forceinline__ void gather_stride1(const Args& a, Item<T> item) {
  constexpr int K = 3, kColumns = 4, kWindows = kColumns + K - 1;
  int outside[kWindows];
  item.dy -= (K - 1) * (a.ow + 1), item.offsets -= (K - 1) * (a.ow + 1), item.window_row -= K - 1;
  const int inside = item.template columns_inside<kColumns>(a.w);
#pragma unroll
  for (int i = 0; i < kWindows; ++i) {
    const int column = item.column + i - (K - 1);
    outside[i] = static_cast<unsigned>(column) < static_cast<unsigned>(a.ow) ? 0 : kNoGradient;
    keep(outside[i]);
  }
  // sum[row % 3] belongs to the unit row; window row `row` reaches units row .. row + 2.
  float sum[K][kColumns] = {};
  for (int first = 1 - K; first < item.units; first += K) {
#pragma unroll
    for (int step = 0; step < K; ++step) {
      const int row = first + step;
      if (static_cast<unsigned>(item.window_row++) < item.window_rows) {
#pragma unroll
        for (int i = 0; i < kWindows; ++i) {
          const float g = to_float(item.dy[i]);
          const uint32_t bits = tap_bits(item.offsets[i] | outside[i]);
#pragma unroll
          for (int kh = 0; kh < K; ++kh)
#pragma unroll
            for (int j = 0; j < kColumns; ++j) {
              const int kw = j + K - 1 - i;
              if (kw < 0 || kw >= K) continue;
              if (has_tap(bits, kh * K + kw)) sum[(step + kh) % K][j] += g;
            }
        }
      }
      item.dy += a.ow, item.offsets += a.ow;
      float (&done)[kColumns] = sum[step];
      if (row >= 0 && row < item.units) {
        if (static_cast<unsigned>(item.h++) < item.pixel_rows) {
#pragma unroll
          for (int j = 0; j < kColumns; ++j)
            if (has_tap(inside, j)) item.dx[j] = from_float<T>(done[j]);
        }
        item.dx += a.w;
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) done[j] = 0.f;
    }
  }
}

template <class T, int K, int S>
constexpr int kItemColumns = S == 1 ? 4 : Words<T>::kPerWord;  // windows across

template <class T, int K, int S>
__global__ void __launch_bounds__(kThreads, S == 1 ? 8 : 12)
    max_pool2d_nchw_backward_kernel(const Args a) {
  extern __shared__ __align__(16) char shared[];

  // The tile: planes, units i0 .. i1, window rows o_lo .. o_hi, input rows h_lo .. h_hi.
  uint32_t band = blockIdx.x;
  const int64_t plane0 = int64_t{a.by_bands.split(band)} * a.tile.planes;
  const int planes = static_cast<int>(min(int64_t{a.tile.planes}, a.planes - plane0));
  const bool banded = a.tile.bands > 1;
  const int i0 = band * a.tile.rows, i1 = min(a.units, i0 + a.tile.rows);
  const int o_lo = banded ? min(max(0, i0 - (K - 1) / S), a.oh) : 0;
  const int o_hi = banded ? max(o_lo, min(a.oh, i1)) : a.oh;
  const int h_lo = banded ? max(0, i0 * S - a.pad_h) : 0;
  const int h_hi = banded ? min(a.h, i1 * S - a.pad_h) : a.h;
  const int window_rows = o_hi - o_lo, rows = h_hi - h_lo;
  const int64_t window0 = (plane0 * a.oh + o_lo) * a.ow, windows = a.planes * a.oh * a.ow;
  const int count = planes * window_rows * a.ow;
  const T* dy_first = static_cast<const T*>(a.dy);
  const T* dy = tile_load(shared + kMargin, dy_first + window0, count, dy_first, dy_first + windows,
                          kThreads);
  const uint8_t* offsets = tile_load(shared + a.offsets_at, a.offsets + window0, count, a.offsets,
                                     a.offsets + windows, kThreads);
  T* dx = static_cast<T*>(a.dx) + (plane0 * a.h + h_lo) * a.w;
  T* dx_tile = tile_start(shared + a.dx_at, dx);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();

  const int items = planes * a.by_strips.divisor * a.by_columns.divisor;
  for (int i = threadIdx.x; i < items; i += kThreads) {
    uint32_t column = i;
    uint32_t strip = a.by_columns.split(column);
    const int plane = a.by_strips.split(strip);
    const int first = i0 + strip * a.strip;
    Item<T> item;
    item.units = min(a.strip, i1 - first), item.column = column * kItemColumns<T, K, S>;
    item.window_row = first - o_lo, item.window_rows = window_rows;
    item.h = first * S - a.pad_h - h_lo, item.pixel_rows = rows;
    item.w = item.column * S - a.pad_w;
    const int at = (plane * window_rows + item.window_row) * a.ow + item.column;
    item.dy = dy + at, item.offsets = offsets + at;
    item.dx = dx_tile + (plane * rows + item.h) * a.w + item.w;
    if constexpr (S == 2) {
      gather_stride2<T, K>(a, item);
    } else {
      gather_stride1<T>(a, item);
    }
  }
  __syncthreads();
  tile_store(dx, dx_tile, planes * rows * a.w, kThreads);
}

template <class T, int K, int S>
cudaError_t launch(const MaxPoolBackwardParams& p, cudaStream_t stream) {
  const PoolShape& s = p.shape;
  Args a{p.dy,    static_cast<const uint8_t*>(p.offsets),
         p.dx,    s.n * s.c,
         s.h,     s.w,
         s.oh,    s.ow,
         s.pad_h, s.pad_w};
  const int64_t bytes = sizeof(T), lead = (K - 1) / S;
  a.units = static_cast<int>(ceil_div(s.h + s.pad_h, S));
  a.tile = plan::plane_tile(s.h * s.w * bytes, a.units, S * s.w * bytes, a.planes);
  const int64_t columns = ceil_div(ceil_div(s.w + s.pad_w, S), kItemColumns<T, K, S>);
  a.strip = plan::strip_rows(a.tile.rows, a.tile.planes * columns, kThreads, lead, S == 1 ? K : 1);
  a.by_bands = FastDiv(a.tile.bands), a.by_columns = FastDiv(columns);
  a.by_strips = FastDiv(ceil_div(a.tile.rows, a.strip));
  const int64_t window_rows = a.tile.bands > 1 ? a.tile.rows + lead : s.oh;
  const int64_t dx_rows = a.tile.bands > 1 ? int64_t{a.tile.rows} * S : s.h;
  const int64_t windows = a.tile.planes * window_rows * s.ow;
  a.offsets_at = kMargin + tile_reserve(windows * bytes) + kMargin;
  a.dx_at = a.offsets_at + tile_reserve(windows) + kMargin;
  const int shared = a.dx_at + tile_reserve(a.tile.planes * dx_rows * s.w * bytes);
  auto* kernel = max_pool2d_nchw_backward_kernel<T, K, S>;
  const cudaError_t error = allow_shared(kernel, shared);
  if (error != cudaSuccess) return error;
  const int64_t blocks = ceil_div(a.planes, a.tile.planes) * a.tile.bands;
  if (blocks > kMaxThreads) return cudaErrorInvalidValue;
  kernel<<<static_cast<unsigned>(blocks), kThreads, shared, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_max_pool2d_backward_nchw(const MaxPoolBackwardParams& p, cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (p.shape.stride_h == 1) return launch<T, 3, 1>(p, stream);
    return p.shape.kernel_h == 3 ? launch<T, 3, 2>(p, stream) : launch<T, 2, 2>(p, stream);
  });
}

}  // namespace cnnkernels
