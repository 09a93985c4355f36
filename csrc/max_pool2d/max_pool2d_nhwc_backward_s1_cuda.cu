// Max-pool 3x3/1 backward, channels_last: every pixel lies in nine windows, so the work is bound by
// instructions, not bytes. Thread = 4 channels x 2 adjacent columns of a band of rows; it walks
// down the windows and keeps the three input rows they reach as fp32 sums in registers, so each
// window is unpacked twice instead of the gather's four times. Order of the sums: oh, then ow. Grid
// flat over (n, band, column pair, channel group), the group fastest. No shared memory, no atomics.
#include "common/dispatch.cuh"
#include "common/fast_div.h"
#include "common/words.cuh"
#include "max_pool2d/max_pool2d.h"

namespace cnnkernels {
namespace {

constexpr int kThreads = 128;
constexpr int K = 3, kColumns = 2, kChannels = 4;
constexpr int kWindows = kColumns + K - 1;  // windows of one row that reach the columns
constexpr int kBand = 19;                   // input rows per thread; kBand + 2 is a multiple of 3

struct Args {
  const void* dy;
  const uint8_t* offsets;
  void* dx;
  int h, w, groups, oh, ow, pad_h, pad_w;
  FastDiv by_groups, by_columns, by_bands;
  uint32_t total;
};

using Sums = float[kColumns][kChannels];

template <class T>
struct WindowRow {
  Chunk<T, kChannels> grad[kWindows];
  Chunk<uint8_t, kChannels> offset[kWindows];

  // Windows outside the output carry the "no gradient" mark.
  __device__ void load(const T* dy, const uint8_t* offsets, int row_ok, int ow0, int ow,
                       int pixel) {
#pragma unroll
    for (int i = 0; i < kWindows; ++i) {
      grad[i] = Chunk<T, kChannels>::filled(0u);
      offset[i] = Chunk<uint8_t, kChannels>::filled(~0u);
      if (row_ok && static_cast<unsigned>(ow0 + i) < static_cast<unsigned>(ow)) {
        grad[i].load(dy + i * pixel);
        offset[i].load(offsets + i * pixel);
      }
    }
  }
  // Adds what tap row kh sends to the columns.
  __device__ void add(int kh, Sums& sums) const {
#pragma unroll
    for (int i = 0; i < kWindows; ++i)
#pragma unroll
      for (int e = 0; e < kChannels; ++e)
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const int kw = j + K - 1 - i;
          if (kw < 0 || kw >= K) continue;
          if (offset[i].byte(e) == kh * K + kw) sums[j][e] += grad[i].element(e);
        }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) max_pool2d_nhwc_backward_s1_kernel(const Args a) {
  uint32_t group = blockIdx.x * kThreads + threadIdx.x;
  if (group >= a.total) return;
  uint32_t column = a.by_groups.split(group);
  uint32_t band = a.by_columns.split(column);
  const int64_t n = a.by_bands.split(band);
  const int pixel = a.groups * kChannels;
  const int h0 = band * kBand, h1 = min(h0 + kBand, a.h), w0 = column * kColumns;
  // The first window row that reaches h0 and the first window column that reaches w0.
  int oh = h0 + a.pad_h - (K - 1);
  const int ow0 = w0 + a.pad_w - (K - 1);
  const int64_t window = ((n * a.oh + oh) * a.ow + ow0) * pixel + group * kChannels;
  const T* dy = static_cast<const T*>(a.dy) + window;
  const uint8_t* offsets = a.offsets + window;
  T* dx = static_cast<T*>(a.dx) + ((n * a.h + h0) * a.w + w0) * pixel + group * kChannels;
  const int64_t window_row = int64_t{a.ow} * pixel, dx_row = int64_t{a.w} * pixel;

  // sums[(h - h0) % 3] belongs to input row h. Window row oh reaches rows oh - pad .. oh - pad + 2.
  Sums sums[K] = {};
  for (int h = h0 - (K - 1); h < h1; h += K) {
#pragma unroll
    for (int step = 0; step < K; ++step) {
      WindowRow<T> row;
      row.load(dy, offsets, static_cast<unsigned>(oh) < static_cast<unsigned>(a.oh), ow0, a.ow,
               pixel);
      // Input row h + step + kh; h - h0 = 1 (mod 3).
#pragma unroll
      for (int kh = 0; kh < K; ++kh) row.add(kh, sums[(1 + step + kh) % K]);
      Sums& done = sums[(1 + step) % K];
      if (h + step >= h0 && h + step < h1) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          if (w0 + j < a.w) Chunk<T, kChannels>::rounded(done[j]).store(dx + j * pixel);
        dx += dx_row;
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
#pragma unroll
        for (int e = 0; e < kChannels; ++e) done[j][e] = 0.f;
      dy += window_row, offsets += window_row, ++oh;
    }
  }
}

}  // namespace

cudaError_t launch_max_pool2d_backward_nhwc_s1(const MaxPoolBackwardParams& p,
                                               cudaStream_t stream) {
  return dispatch_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    const PoolShape& s = p.shape;
    Args a{p.dy, nullptr, p.dx,    s.h,    s.w, static_cast<int>(s.c / kChannels),
           s.oh, s.ow,    s.pad_h, s.pad_w};
    const int64_t columns = ceil_div(s.w, kColumns), bands = ceil_div(s.h, kBand);
    a.by_groups = FastDiv(a.groups), a.by_columns = FastDiv(columns), a.by_bands = FastDiv(bands);
    const int64_t per_image = columns * bands * a.groups;
    return for_slices(s.n, per_image, [&](int64_t first, int64_t count) {
      const int64_t windows = first * s.c * s.oh * s.ow;
      a.dy = static_cast<const T*>(p.dy) + windows;
      a.offsets = static_cast<const uint8_t*>(p.offsets) + windows;
      a.dx = static_cast<T*>(p.dx) + first * s.c * s.h * s.w;
      a.total = static_cast<uint32_t>(count * per_image);
      max_pool2d_nhwc_backward_s1_kernel<T>
          <<<static_cast<unsigned>(ceil_div(a.total, kThreads)), kThreads, 0, stream>>>(a);
      return cudaGetLastError();
    });
  });
}

}  // namespace cnnkernels
